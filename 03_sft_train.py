"""03: supervised fine-tuning on the training demonstrations, or distillation of the teacher.

    python 03_sft_train.py [--num_train_epochs 3] [--lora.enabled false]
    python 03_sft_train.py --objective distill [--divergence reverse_kl|forward_kl|jsd] [--start sft|base]
    python 03_sft_train.py --objective distill --on_policy_fraction 0.5 --num_generations 1 [--ce_weight 0.1]

Supervised: TRL's SFTTrainer; LoRA unless the model configuration switches it off; loss on completion tokens
only. Distillation (docs/distillation.md): the SFT policy towards the teacher, on the student's own samples
unless ``on_policy_fraction`` says otherwise; save_steps, logging_steps and eval_steps then count rollouts.
Greedy answers to validation items choose the best checkpoint.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from utils.frame.config import StageConfig, setting
from utils.frame.pipeline import DEFAULT_CURRICULUM, CurriculumName
from utils.frame.stage import Choice, NoOptions, Stage, StageContext, main
from utils.methods.distill.settings import DistillAlgo
from utils.methods.sft.settings import SftAlgo
from utils.models.settings import ModelConfig
from utils.training.inputs import (
    configured_model,
    configured_teacher,
    sft_policy,
    training_inputs,
    variant,
)

VALIDATION = {
    "validation reward": ["val_reward"],
    "validation accuracy": ["val_accuracy", "val_format_valid"],
    "gradient norm": ["grad_norm"],
}
PANELS = {
    "training loss (nats per token)": ["loss"],
    **VALIDATION,
    "token accuracy": ["mean_token_accuracy"],
    "completion length (tokens)": ["val_length"],
}
DISTILL_PANELS = {
    "loss": ["loss"],
    "divergence (nats per token)": ["divergence"],
    "cross-entropy on gold (nats per token)": ["cross_entropy"],
    "agreement of likeliest tokens": ["agreement", "val_agreement"],
    "KL on validation gold (nats per token)": ["val_forward_kl", "val_reverse_kl"],
    "entropy (nats per token)": ["entropy", "teacher_entropy"],
    "accuracy of the rollout": ["train_accuracy"],
    **VALIDATION,
    "completion length (tokens)": ["completions/mean_length", "val_length"],
}


@dataclass
class DistillOptions:
    """Options of 03_sft_train.py --objective distill."""

    start: Literal["sft", "base"] = setting("sft", "what is trained: the SFT policy, or the base model")
    curriculum: CurriculumName = setting(
        DEFAULT_CURRICULUM,
        "which prompts to learn from next (docs/curricula.md); a folder 03_distill_<curriculum> for others",
    )


def inputs(config: StageConfig, run_dir: Path) -> dict[str, Path]:
    return training_inputs(run_dir) | configured_model(config.model.model.name_or_path)


def distill_inputs(config: StageConfig, run_dir: Path) -> dict[str, Path]:
    base = config.options.start == "base"
    start = configured_model(config.model.model.name_or_path) if base else sft_policy(run_dir)
    return training_inputs(run_dir) | start | configured_teacher(config.model)


def run(ctx: StageContext) -> None:
    from utils.training.run import train_stage

    if not isinstance(ctx.config.algo, DistillAlgo):
        from utils.methods.sft.trainer import build_sft_trainer

        train_stage(ctx, "sft", lambda records, spec: build_sft_trainer(ctx, records), PANELS)
        return
    from utils.methods.distill.build import build_distill_trainer
    from utils.rollouts.shared_prefix_trainer import updates_per_rollout

    train_stage(
        ctx,
        "distill",
        lambda records, spec: build_distill_trainer(ctx, records, spec),
        DISTILL_PANELS,
        unit=updates_per_rollout(ctx.config.algo),
    )


DISTILL = Stage(
    number="03",
    folder="03_distill",
    summary="Distil the teacher into the SFT policy or the base model.",
    reads="01_preprocessing/{train,val}.jsonl, 02_rewards/reward_spec.yaml, 03_sft/ckpt_sft/best, teacher",
    writes="03_distill/: ckpt_distill/{best,final,step_N}, logs/{metrics.jsonl,curves.png}, valid_samples/; "
    "with --curriculum: logs/curriculum.{jsonl,png}",
    tiers={
        "model": (ModelConfig, "configs/models/sample.yaml"),
        "algo": (DistillAlgo, "configs/algorithms/distill.yaml"),
    },
    options=DistillOptions,
    inputs=distill_inputs,
    variant=variant,
    several_processes=True,
    quick={
        "algo.num_rollouts": 4,
        "algo.per_device_train_batch_size": 8,
        "model.training.save_steps": 2,
        "model.validation.eval_steps": 2,
        "model.validation.num_items": 8,
    },
)
STAGE = Stage(
    number="03",
    folder="03_sft",
    summary="Fine-tune the base model on the training demonstrations.",
    reads="01_preprocessing/{train,val}.jsonl, 02_rewards/reward_spec.yaml, the base model",
    writes="03_sft/: ckpt_sft/{best,final,step_N}, logs/{metrics.jsonl,curves.png}, valid_samples/",
    tiers={
        "model": (ModelConfig, "configs/models/sample.yaml"),
        "algo": (SftAlgo, "configs/algorithms/sft.yaml"),
    },
    options=NoOptions,
    inputs=inputs,
    several_processes=True,
    quick={"algo.max_steps": 4, "model.validation.eval_steps": 2, "model.validation.num_items": 8},
    choice=Choice("objective", "train on demonstrations, or distil the teacher", "sft", {"distill": DISTILL}),
)

if __name__ == "__main__":
    main(STAGE, run)
