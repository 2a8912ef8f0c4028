"""What every training run shares: resume points, the log that is kept, curves, refusal of broken numbers."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import PrinterCallback, Trainer, TrainerCallback

from utils.common import UserError, write_jsonl
from utils.config import ModelConfig
from utils.stage import StageContext
from utils.training.validation import GenerationValidation, best_step

datasets.disable_progress_bars()

# Logged by Transformers and TRL, but different on every execution: kept out of the log that manifests hash.
VOLATILE = ("runtime", "per_second", "step_time", "_time", "total_flos", "memory")


class RefuseNonFinite(TrainerCallback):
    """Stop at the first loss, reward or gradient norm that is not a finite number, naming step and key."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        for key, value in (logs or {}).items():
            if key in ("loss", "grad_norm", "reward", "kl") and not math.isfinite(float(value)):
                raise UserError(
                    f"{key} is {value} at step {state.global_step}: lower algo.learning_rate, or use "
                    "model.torch_dtype float32; the last resume point is kept"
                )


class Progress(TrainerCallback):
    """One line per validation."""

    def __init__(self, ctx: StageContext):
        self.ctx = ctx

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "val_reward" in logs:
            self.ctx.log(
                f"step {state.global_step}/{state.max_steps}: val reward {logs['val_reward']:.3f}, "
                f"val accuracy {100 * logs['val_accuracy']:.1f} %"
            )


def trainer_arguments(ctx: StageContext) -> dict[str, Any]:
    """The arguments that all TRL configs share, from the model tier."""
    model: ModelConfig = ctx.config.model
    half = model.model.torch_dtype
    return {
        "output_dir": str(ctx.out / "resume"),
        "seed": ctx.seed,
        "data_seed": ctx.seed,
        "save_strategy": "steps",
        "save_steps": model.training.save_steps,
        "save_total_limit": 1,
        "logging_steps": model.training.logging_steps,
        "max_grad_norm": model.training.max_grad_norm,
        "optim": model.training.optim,
        "gradient_checkpointing": model.training.gradient_checkpointing,
        "dataloader_num_workers": model.training.dataloader_num_workers,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "report_to": model.training.report_to or "none",
        "bf16": half == "bfloat16",
        "fp16": half == "float16",
        "disable_tqdm": True,
    }


def resume_point(folder: Path) -> Path | None:
    """The latest complete checkpoint below ``folder`` (by number), or None; incomplete ones are removed.

    The trainer's state is the last file of a checkpoint to be written.
    """
    points = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]), reverse=True)
    for point in points:
        try:
            json.loads((point / "trainer_state.json").read_text(encoding="utf-8"))
            return point
        except (OSError, ValueError):
            shutil.rmtree(point)
    return None


def run_training(
    ctx: StageContext, trainer: Trainer, validation: GenerationValidation
) -> list[dict[str, Any]]:
    """Train, resuming where an interrupted execution left off; write final checkpoint, log and curves.

    Returns the log without volatile numbers, as in ``logs/metrics.jsonl``.
    """
    validation.trainer = trainer
    trainer.remove_callback(PrinterCallback)  # prints every log row as a dict; the log file holds them
    for callback in (validation, RefuseNonFinite(), Progress(ctx)):
        trainer.add_callback(callback)
    point = resume_point(ctx.out / "resume") if ctx.resuming else None
    if point:
        ctx.log(f"resuming from step {point.name.split('-')[1]}")
    output = trainer.train(resume_from_checkpoint=str(point) if point else None)
    validation.save_final()
    history = [stable(row) for row in trainer.state.log_history]
    history = [row for row in history if set(row) - {"step", "epoch"}]
    write_jsonl(ctx.out / "logs" / "metrics.jsonl", history)
    ctx.runtime["train_seconds"] = round(output.metrics["train_runtime"], 1)
    last = [row for row in history if "val_reward" in row][-1]
    best = best_step(history)
    ctx.metrics |= {
        "steps": trainer.state.global_step,
        "best_step": best,
        "best_val_reward": next(
            row["val_reward"] for row in history if row["step"] == best and "val_reward" in row
        ),
        "final_val_reward": last["val_reward"],
        "final_val_accuracy": last["val_accuracy"],
    }
    shutil.rmtree(ctx.out / "resume")
    return history


def stable(row: dict[str, Any]) -> dict[str, Any]:
    """A log row without the numbers that differ between executions."""
    return {key: value for key, value in row.items() if not any(word in key for word in VOLATILE)}


def plot_curves(history: Sequence[dict[str, Any]], panels: dict[str, Sequence[str]], path: Path) -> None:
    """A PNG with one panel per title, each drawing the named log keys over optimizer steps.

    Panels without any logged value are left out; the bytes depend on the numbers alone.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn = {
        title: [key for key in keys if any(key in row for row in history)] for title, keys in panels.items()
    }
    drawn = {title: keys for title, keys in drawn.items() if keys}
    columns = min(3, len(drawn))
    rows = -(-len(drawn) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(4.2 * columns, 3 * rows), squeeze=False)
    for axis, (title, keys) in zip(axes.flat, drawn.items(), strict=False):
        for key in keys:
            points = [(row["step"], row[key]) for row in history if key in row]
            axis.plot(
                *zip(*points, strict=True), marker="o" if len(points) < 15 else None, markersize=3, label=key
            )
        axis.set_title(title)
        axis.set_xlabel("optimizer step")
        axis.grid(alpha=0.3)
        if len(keys) > 1:
            axis.legend(fontsize=7)
    for axis in axes.flat[len(drawn) :]:
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)
