"""Train by every method, in however many processes run this; test_processes_training.py compares.

usage: training_processes.py MODEL TEACHER INPUTS OUT (folders; the first process writes OUT/<method>/…)
"""

import contextlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from group_stub import KillAt, Killed, stage_context

from utils.processes import join_processes, leave_processes, wait_for_everyone
from utils.stage import StageContext
from utils.training.distill import build_distill_trainer
from utils.training.distill_settings import DistillAlgo
from utils.training.dpo import train_dpo
from utils.training.grpo import build_grpo_trainer
from utils.training.ppo import build_ppo_trainer
from utils.training.rloo import build_rloo_trainer
from utils.training.running import train_stage
from utils.training.settings import DpoAlgo, GrpoAlgo, PpoAlgo, RlooAlgo, SftAlgo
from utils.training.sft import build_sft_trainer

COMMON = {"learning_rate": 1e-2, "warmup_steps": 1, "num_rollouts": 2, "num_iterations": 1}
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
    "ppo": (
        PpoAlgo(learning_rate=1e-2, warmup_steps=1, num_rollouts=2, rollout_batch_size=8, num_generations=2),
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


def train(ctx: StageContext, method: str, kill_at: int = 0) -> None:
    """The whole of the method's stage, or what comes of it until it is killed after a step."""
    _, build = METHODS[method]
    if method == "dpo":
        train_dpo(ctx, {"loss": ["loss"]})
        return

    def built(records, spec):
        trainer, tokenizer = build(ctx, records, spec) if build else build_sft_trainer(ctx, records)
        if kill_at:
            trainer.add_callback(KillAt("on_step_begin", kill_at))
        return trainer, tokenizer

    train_stage(ctx, method, built, {"loss": ["loss"]}, unit=2)


def main(model: Path, teacher: Path, inputs: Path, out: Path) -> None:
    join_processes()
    named = {path.name.split(".")[0]: path for path in inputs.iterdir()}

    def context(name: str, resuming: bool = False) -> StageContext:
        algo, _ = METHODS[name.removesuffix("_resumed")]
        options = {"curriculum": "random", "start": "sft", "variance_prompts": 0}
        ctx = stage_context(out / name, named, model, algo, resuming=resuming, **options)
        ctx.config.model.model.teacher_name_or_path = str(teacher)
        ctx.config.model.validation.num_items = 3
        return ctx

    for method in METHODS:
        train(context(method), method)
    with contextlib.suppress(Killed):
        train(context("grpo_resumed"), "grpo", kill_at=3)
    wait_for_everyone()
    train(context("grpo_resumed", resuming=True), "grpo")
    leave_processes()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:5]))
