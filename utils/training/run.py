"""What every training run shares: resume points, the log that is kept, curves, refusal of broken numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

import datasets
import torch
from transformers import PreTrainedTokenizerBase, PrinterCallback, Trainer, TrainerCallback

from utils.data.prompts import template_facts
from utils.data.records import Record, load_records
from utils.documents.training_curves import plot_curves
from utils.frame.files import UserError, write_jsonl
from utils.frame.manifest import RESUME
from utils.frame.pipeline import METHODS
from utils.frame.processes import from_main, is_main_process, num_processes, shards_on_cpu
from utils.frame.stage import StageContext
from utils.models import four_bits
from utils.models.gated_layers import keep_less
from utils.models.loading import device
from utils.models.settings import ModelConfig
from utils.rewards.spec import RewardSpec, load_reward_spec, weights_in_force
from utils.training.cost import MeasuresUpdates
from utils.training.health.health_callback import TrainingHealth
from utils.training.health.log_curves import is_finite
from utils.training.memory import precision, train_within_memory
from utils.training.resume_points import SealsResumePoints, restore, resume_point
from utils.training.trackers import tracker_arguments
from utils.training.training_criteria import training_criteria
from utils.training.validation import GenerationValidation, best_row

datasets.disable_progress_bars()

# Logged by Transformers and TRL, but different on every execution: kept out of the log that manifests hash.
# (train_loss is the mean over the steps since the last resumption.)
VOLATILE = ("runtime", "per_second", "step_time", "_time", "total_flos", "memory", "train_loss")


class RefuseNonFinite(TrainerCallback):
    """Stop at the first loss, reward or gradient norm that is not a finite number, naming step and key."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        for key, value in (logs or {}).items():
            if key in ("loss", "grad_norm", "reward", "kl") and not is_finite(value):
                raise UserError(
                    f"{key} is {value} at step {state.global_step}: lower algo.learning_rate, or use "
                    "model.torch_dtype float32; the last resume point is kept"
                )


class ResumeExactly(TrainerCallback):
    """What Transformers and TRL leave out for a resumed run to end as an uninterrupted one.

    Everything pending is logged before a resume point is written: sums since the last log are not in it.
    SFTTrainer's count of tokens, which starts at 0 in every process, goes on from the last one logged. The
    order of the data is that of the epoch, which does not reach the sampler where several processes resume
    within one. And no resume point is made of the last step: training would go on from there, past its end.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        counts = [row["num_tokens"] for row in state.log_history if "num_tokens" in row]
        if counts:
            self.trainer._total_train_tokens = int(counts[-1])

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        batches = train_dataloader.batch_sampler
        while hasattr(batches, "batch_sampler"):  # Accelerate's parts of it for each process
            batches = batches.batch_sampler
        if hasattr(batches.sampler, "set_epoch"):
            batches.sampler.set_epoch(int(state.epoch))

    def on_step_end(self, args, state, control, **kwargs):
        control.should_log |= control.should_save
        control.should_save &= state.global_step < state.max_steps


class Progress(TrainerCallback):
    """A bar of the steps, and one line per validation with the mean loss since the last; one at the end where
    none was made.

    The loss is left out where it is a policy gradient's surrogate, whose level says nothing.
    """

    def __init__(self, ctx: StageContext):
        self.ctx = ctx
        self.losses: list[float] = []
        self.validated = False
        self.bar: Any = None

    def on_train_begin(self, args, state, control, **kwargs):
        self.bar = self.ctx.progress(None, state.max_steps, "training", initial=state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update(state.global_step - self.bar.n)

    def close(self) -> None:
        """Take the bar off the screen, however training ended."""
        if self.bar is not None:
            self.bar.close()

    def on_log(self, args, state, control, logs=None, **kwargs):
        logs = logs or {}
        if "loss" in logs and "reward" not in logs:
            self.losses.append(logs["loss"])
        if "val_reward" not in logs:
            return
        loss = f"loss {fmean(self.losses):.4g}, " if self.losses else ""
        self.losses.clear()
        self.validated = True
        self.ctx.log(
            f"step {state.global_step}/{state.max_steps}: {loss}val reward {logs['val_reward']:.3f}, "
            f"val accuracy {100 * logs['val_accuracy']:.1f} %"
        )

    def on_train_end(self, args, state, control, **kwargs):
        if self.losses and not self.validated:
            step = f"step {state.global_step}/{state.max_steps}"
            self.ctx.log(f"{step}: loss {fmean(self.losses):.4g}, the mean of all steps")


def trainer_arguments(ctx: StageContext, unit: int = 1) -> dict[str, Any]:
    """The arguments that all TRL configs share, from the model tier, whose intervals count ``unit`` optimizer
    steps each.
    """
    model: ModelConfig = ctx.config.model
    if any(word in model.training.optim for word in ("bnb", "8bit", "paged")):
        four_bits.bring_back()
    return {
        "output_dir": str(ctx.out / RESUME),
        "seed": ctx.seed,
        "data_seed": ctx.seed,
        "save_strategy": "steps",
        "save_steps": model.training.save_steps * unit,
        "logging_steps": model.training.logging_steps * unit,
        "logging_nan_inf_filter": False,  # a broken loss is to be seen, not averaged away
        "max_grad_norm": model.training.max_grad_norm,
        "optim": model.training.optim,
        "gradient_checkpointing": model.training.gradient_checkpointing,
        "dataloader_num_workers": model.training.dataloader_num_workers,
        "dataloader_pin_memory": torch.cuda.is_available(),
        **tracker_arguments(ctx),
        **precision(model),
        "disable_tqdm": True,
        "use_cpu": num_processes() > 1 and not torch.cuda.is_available(),  # Accelerate asks to be told
        "ddp_find_unused_parameters": False,
        # Otherwise Transformers forgets what `join_processes` has set up, and does it again.
        "accelerator_config": {"use_configured_state": num_processes() > 1 and shards_on_cpu()},
    }


def compute_reproducibly() -> None:
    """Make gradients the same on every execution: on the CPU, threads otherwise add them up in any order.

    Not on CUDA, where some operations have no such form.
    """
    if not torch.cuda.is_available():
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid that costs time


def train_stage(
    ctx: StageContext,
    method: str,
    build: Callable[[list[Record], RewardSpec], tuple[Trainer, PreTrainedTokenizerBase]],
    panels: dict[str, Sequence[str]],
    unit: int = 1,
) -> None:
    """A training stage from its inputs to its curves: ``build`` makes trainer and tokenizer from the training
    records (none where there is no input "train") and the reward specification; validation uses the first
    ``validation.num_items`` of val, every ``validation.eval_steps`` times ``unit`` optimizer steps. It is
    `GenerationValidation`, unless the trainer names another class as its ``validation``.
    """
    compute_reproducibly()
    spec = load_reward_spec(ctx.inputs["reward_spec"])
    if reward := getattr(ctx.config.options, "reward", ""):
        ctx.metrics["reward_weights"] = weights_in_force(spec, reward)
    # User-defined components join the built-in ones.
    own = [f"rewards/{name}/mean" for name in spec.own]
    panels = {
        title: [*keys, *own] if "rewards/reasoning/mean" in keys else keys for title, keys in panels.items()
    }
    records = load_records(ctx.inputs["val"])[: ctx.config.model.validation.num_items]

    def attempt() -> tuple[Trainer, list[dict[str, Any]]]:
        trainer, tokenizer = build(load_records(ctx.inputs["train"]) if "train" in ctx.inputs else [], spec)
        ctx.metrics |= template_facts(tokenizer)
        validate = getattr(trainer, "validation", GenerationValidation)
        validation = validate(records, spec, ctx.config.model, tokenizer, ctx.out, method, unit)
        return trainer, run_training(ctx, trainer, validation)

    trainer, history = train_within_memory(ctx, attempt)
    if method in METHODS:
        ctx.criteria |= training_criteria(METHODS[method], history, ctx.metrics)
    if is_main_process():
        plot_curves(history, panels, ctx.out / "logs" / "curves.png")
    if hasattr(trainer, "end_stage"):
        trainer.end_stage(ctx)


def run_training(
    ctx: StageContext, trainer: Trainer, validation: GenerationValidation
) -> list[dict[str, Any]]:
    """Train, resuming where an interrupted execution left off; write the final checkpoint and the log.

    Returns the log without volatile numbers, as in ``logs/metrics.jsonl``.
    """
    ctx.runtime["micro_batch"] = trainer.args.per_device_train_batch_size
    if device().type == "cpu" and not trainer.args.gradient_checkpointing:  # which keeps less still
        keep_less(trainer.model)
    trainer.room = validation.room
    validation.trainer = trainer
    trainer.remove_callback(PrinterCallback)  # prints every log row as a dict; the log file holds them
    progress = Progress(ctx)
    for callback in (
        MeasuresUpdates(trainer.cost, samples=hasattr(trainer, "pipeline")),
        validation,
        ResumeExactly(trainer),
        SealsResumePoints(ctx.out),
        RefuseNonFinite(),
        progress,
        TrainingHealth(ctx),
    ):
        trainer.add_callback(callback)
    point = None
    if ctx.resuming and is_main_process():  # which tells the others
        point = resume_point(ctx.out / RESUME, ctx.warn)
        restore(point, ctx.out)
    point = from_main(point)
    if point:
        ctx.log(f"resuming from step {point.name.split('-')[1]}")
    try:
        output = trainer.train(resume_from_checkpoint=str(point) if point else None)
    finally:
        progress.close()
    validation.save_final()
    history = [stable(row) for row in trainer.state.log_history]
    history = [row for row in history if set(row) - {"step", "epoch", "sampled_completions"}]
    ctx.runtime["train_seconds"] = round(output.metrics["train_runtime"], 1)
    trainer.cost.report(ctx)
    ctx.metrics |= {"steps": trainer.state.global_step} | outcome(history, trainer.state.global_step)
    if is_main_process():
        write_jsonl(ctx.out / "logs" / "metrics.jsonl", history)
    return history


def outcome(history: Sequence[dict[str, Any]], last_step: int) -> dict[str, Any]:
    """For the manifest: which step's policy is the best checkpoint, and what validation said of it and of the
    last; without validations the last step's.
    """
    validated = [row for row in history if "val_reward" in row]
    if not validated:
        return {"best_step": last_step}
    best, last = best_row(history), validated[-1]
    return {
        "best_step": best["step"],
        "best_val_reward": best["val_reward"],
        "final_val_reward": last["val_reward"],
        "final_val_accuracy": last["val_accuracy"],
    }


def stable(row: dict[str, Any]) -> dict[str, Any]:
    """A log row without the numbers that differ between executions, its keys in order (a resumed trainer gets
    them back sorted)."""
    return {key: row[key] for key in sorted(row) if not any(word in key for word in VOLATILE)}
