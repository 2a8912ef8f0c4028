"""Train by every method, in however many processes run this; test_processes_training.py compares.

usage: training_processes.py MODEL TEACHER INPUTS OUT (folders; the first process writes OUT/<method>/… and
OUT/gradients/<method>.safetensors, process n OUT/<n>.json and OUT/held_<n>.json)
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from safetensors.torch import save_file
from torch import Tensor
from transformers import TrainerCallback

from tests.support import curriculum_processes
from tests.support.training_stages import KillAt, Killed, stage_context
from utils.frame.files import REPO_ROOT, write_json
from utils.frame.processes import (
    is_main_process,
    join_processes,
    leave_processes,
    num_processes,
    process_index,
    wait_for_everyone,
)
from utils.frame.stage import StageContext
from utils.methods.distill.build import build_distill_trainer
from utils.methods.distill.settings import DistillAlgo
from utils.methods.dpo.build import build_dpo_trainer
from utils.methods.dpo.settings import DpoAlgo
from utils.methods.grpo.settings import GrpoAlgo
from utils.methods.grpo.trainer import build_grpo_trainer
from utils.methods.ppo.build import build_ppo_trainer
from utils.methods.ppo.settings import PpoAlgo
from utils.methods.rloo.settings import RlooAlgo
from utils.methods.rloo.trainer import build_rloo_trainer
from utils.methods.sft.settings import SftAlgo
from utils.methods.sft.trainer import build_sft_trainer
from utils.rewards.reward_pipeline import RewardPipeline
from utils.training.run import train_stage

COMMON = {"learning_rate": 1e-2, "warmup_steps": 1, "num_rollouts": 2, "num_iterations": 1}
PPO = {
    "learning_rate": 1e-2,
    "warmup_steps": 1,
    "num_rollouts": 2,
    "rollout_batch_size": 8,
    "num_generations": 2,
}
# Each rollout has 8 completions of 4 prompts; the last batch of an epoch is not full in sft and dpo.
METHODS = {
    "sft": (SftAlgo(learning_rate=1e-2, warmup_steps=1, max_steps=5, per_device_train_batch_size=6), None),
    "grpo": (
        GrpoAlgo(
            **COMMON, per_device_train_batch_size=4, steps_per_generation=2, num_generations=2, beta=0.05
        ),
        build_grpo_trainer,
    ),
    "grpo_accumulated": (
        GrpoAlgo(
            **COMMON,
            per_device_train_batch_size=4,
            steps_per_generation=2,
            gradient_accumulation_steps=2,
            num_generations=2,
        ),
        build_grpo_trainer,
    ),
    "rloo": (
        RlooAlgo(**COMMON, per_device_train_batch_size=4, steps_per_generation=2, num_samples=2),
        build_rloo_trainer,
    ),
    "rloo_filtered": (
        RlooAlgo(
            **COMMON | {"num_rollouts": 4},
            per_device_train_batch_size=4,
            steps_per_generation=2,
            num_samples=2,
            group_filter="outcome",
        ),
        build_rloo_trainer,
    ),
    "ppo": (
        PpoAlgo(**PPO, value_model="shared"),
        build_ppo_trainer,
    ),
    "ppo_siblings": (
        PpoAlgo(**PPO | {"num_generations": 4}, value_model="siblings"),
        build_ppo_trainer,
    ),
    "ppo_separate": (
        PpoAlgo(
            **PPO,
            num_mini_batches=1,
            gradient_accumulation_steps=2,
            num_ppo_epochs=3,
            value_model="separate",
            target_kl=1e-4,
            adaptive_kl=True,
            kl_target=0.1,
        ),
        build_ppo_trainer,
    ),
    "distill": (
        DistillAlgo(
            **COMMON,
            per_device_train_batch_size=4,
            steps_per_generation=2,
            num_generations=1,
            on_policy_fraction=0.6,
            ce_weight=0.3,
        ),
        build_distill_trainer,
    ),
    "distill_sampled": (
        DistillAlgo(
            **COMMON,
            per_device_train_batch_size=4,
            steps_per_generation=2,
            num_generations=2,
            divergence="sampled_kl",
            reward_scale=1.25,
            top_entropy_quantile=0.5,
        ),
        build_distill_trainer,
    ),
    "dpo": (
        DpoAlgo(
            learning_rate=1e-2,
            warmup_steps=1,
            max_steps=4,
            per_device_train_batch_size=4,
            loss_type=["sigmoid", "sft"],
        ),
        None,
    ),
}


METHODS["full"] = METHODS["sft"]  # of all weights; two processes do it under FSDP, killed and resumed


class KeepGradients(TrainerCallback):
    """Write the gradients of the first two optimizer steps, between which the weights stay as they are: the
    learning rate of the first is 0."""

    def __init__(self, trainer, path: Path):
        self.trainer, self.path = trainer, path
        self.found: dict[str, Tensor] = {}

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step > 1:
            return
        parameters = dict(self.trainer.model.named_parameters())
        if getattr(self.trainer, "value_model", None) is not None:
            parameters |= {f"critic.{name}": each for name, each in self.trainer.critic.named_parameters()}
        for name, each in parameters.items():
            if each.grad is not None:
                gradient = each.grad.full_tensor() if hasattr(each.grad, "full_tensor") else each.grad
                self.found[f"{state.global_step} {name}"] = gradient.clone()
        if state.global_step == 1 and is_main_process():
            self.path.parent.mkdir(exist_ok=True)
            save_file(self.found, self.path)


class NoteHeld(TrainerCallback):
    """Write how many of the model's weights, and of the optimizer's numbers, this process holds."""

    def __init__(self, trainer, path: Path):
        self.trainer, self.path = trainer, path

    def on_step_end(self, args, state, control, **kwargs):
        weights = list(self.trainer.model.parameters())
        moments = [each["exp_avg"] for each in self.trainer.optimizer.state.values()]
        found = {
            name: [sum(each.to_local().numel() for each in tensors), sum(each.numel() for each in tensors)]
            for name, tensors in (("weights", weights), ("moments", moments))
        }
        write_json(self.path, found)


@contextlib.contextmanager
def under_fsdp() -> Iterator[None]:
    """As `accelerate launch` with the shipped configuration sets FSDP up."""
    config = REPO_ROOT / "configs" / "accelerate" / "fsdp.yaml"
    arguments = ["--config_file", str(config), "--num_processes", "2", "script.py"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    launched = prepare_multi_gpu_env(arguments)
    settings = {name: value for name, value in launched.items() if "FSDP" in name}
    os.environ.update(settings)
    join_processes()
    try:
        yield
    finally:
        for name in settings:
            del os.environ[name]


@contextlib.contextmanager
def filled_by_a_made_up_verdict() -> Iterator[None]:
    """Groups are told apart by a verdict on texts, as no random one is right."""
    stock, RewardPipeline.correct = RewardPipeline.correct, verdicts
    try:
        yield
    finally:
        RewardPipeline.correct = stock


def verdicts(pipeline: RewardPipeline, record: Sequence[int], texts: Sequence[str]) -> list[bool]:
    """Right are texts of an even sum."""
    return [sum(map(ord, text)) % 2 == 0 for text in texts]


def train(ctx: StageContext, method: str, kill_at: int = 0) -> None:
    """The whole of the method's stage, or what comes of it until it is killed after a step."""
    _, build = METHODS[method]
    if method == "dpo":
        train_stage(ctx, method, partial(build_dpo_trainer, ctx), {"loss": ["loss"]})
        return

    def built(records, spec):
        trainer, tokenizer = build(ctx, records, spec) if build else build_sft_trainer(ctx, records)
        if kill_at:
            trainer.add_callback(KillAt("on_step_begin", kill_at))
        if not ctx.resuming:
            path = ctx.out.parent / "gradients" / f"{ctx.out.name}.safetensors"
            trainer.add_callback(KeepGradients(trainer, path))
        if trainer.is_fsdp_enabled:
            trainer.add_callback(NoteHeld(trainer, ctx.out.parent / f"held_{process_index()}.json"))
        return trainer, tokenizer

    train_stage(ctx, method, built, {"loss": ["loss"]}, unit=2)


def main(model: Path, teacher: Path, inputs: Path, out: Path) -> None:
    join_processes()
    named = {path.name.split(".")[0]: path for path in inputs.iterdir()}

    def context(name: str, resuming: bool = False) -> StageContext:
        algo, _ = METHODS[name.removesuffix("_resumed")]
        options = {"curriculum": "random", "start": "sft"}
        ctx = stage_context(out / name, named, model, algo, resuming=resuming, **options)
        ctx.config.model.model.teacher_name_or_path = str(teacher)
        ctx.config.model.validation.num_items = 3
        ctx.config.model.lora.enabled = name != "full"
        ctx.config.model.training.max_grad_norm = (
            1e9  # gradients are compared, not what clipping makes of them
        )
        return ctx

    def train_with_a_break(name: str, method: str) -> None:
        with contextlib.suppress(Killed):
            train(context(name), method, kill_at=3)
        wait_for_everyone()
        train(context(name, resuming=True), method)

    if num_processes() > 1:
        with under_fsdp():
            train_with_a_break("full", "full")
        for method in ("sft", "grpo"):
            train_with_a_break(f"{method}_resumed", method)
    else:
        train(context("full"), "full")
    for method in METHODS:
        if method != "full":
            with filled_by_a_made_up_verdict():
                train(context(method), method)
    curriculum_processes.main(model, out)
    leave_processes()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:5]))
