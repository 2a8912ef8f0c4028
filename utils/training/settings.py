"""Algorithm tiers: the hyper-parameters of each method. Light to import: the driver reads them all.

Names are those of TRL's configs (SFTConfig, GRPOConfig).
"""

from dataclasses import dataclass
from typing import Literal

from utils.config import setting


def _positive(**values: float) -> None:
    for name, value in values.items():
        if value <= 0:
            raise ValueError(f"{name} must be above 0, found {value}")


@dataclass
class SftAlgo:
    """Supervised fine-tuning on demonstrations, loss on completions only (configs/algorithms/sft.yaml)."""

    learning_rate: float = setting(1e-3, "peak learning rate of AdamW")
    lr_scheduler_type: str = setting("cosine", "schedule after warm-up, as Transformers names it")
    warmup_steps: int = setting(10, "optimizer steps of linear warm-up")
    num_train_epochs: float = setting(1.0, "passes over the training set, unless max_steps is given")
    max_steps: int = setting(-1, "optimizer steps; -1: as many as num_train_epochs takes")
    per_device_train_batch_size: int = setting(32, "sequences per micro-batch and device")
    gradient_accumulation_steps: int = setting(1, "micro-batches per optimizer step")
    weight_decay: float = setting(0.0, "AdamW's decoupled weight decay")

    def validate(self) -> None:
        _positive(
            learning_rate=self.learning_rate,
            num_train_epochs=self.num_train_epochs,
            per_device_train_batch_size=self.per_device_train_batch_size,
            gradient_accumulation_steps=self.gradient_accumulation_steps,
        )


@dataclass
class GrpoAlgo:
    """Group-relative policy optimisation (Shao et al. 2024, arXiv 2402.03300; configs/algorithms/grpo.yaml).

    A rollout holds ``per_device_train_batch_size * steps_per_generation`` completions per device,
    ``num_generations`` of each prompt, and is used for ``num_iterations`` passes.
    """

    learning_rate: float = setting(5e-4, "peak learning rate of AdamW")
    lr_scheduler_type: str = setting("constant_with_warmup", "schedule, as Transformers names it")
    warmup_steps: int = setting(5, "optimizer steps of linear warm-up")
    max_steps: int = setting(100, "optimizer steps")
    per_device_train_batch_size: int = setting(128, "completions per micro-batch and device")
    gradient_accumulation_steps: int = setting(1, "micro-batches per optimizer step")
    steps_per_generation: int = setting(1, "micro-batches a rollout is split into")
    num_generations: int = setting(8, "completions per prompt (G)")
    num_iterations: int = setting(1, "passes over each rollout (mu)")
    beta: float = setting(0.0, "weight of the KL penalty to the reference policy")
    epsilon: float = setting(0.2, "clip range of the probability ratio")
    epsilon_high: float | None = setting(None, "upper clip range; null: epsilon")
    loss_type: Literal["grpo", "dr_grpo", "dapo", "bnpo"] = setting("dapo", "how token losses are averaged")
    scale_rewards: Literal["group", "batch", "none"] = setting("group", "what advantages are divided by")
    importance_sampling_level: Literal["token", "sequence"] = setting("token", "level of the ratio")
    mask_truncated_completions: bool = setting(False, "leave completions without an end out of the loss")
    weight_decay: float = setting(0.0, "AdamW's decoupled weight decay")

    def validate(self) -> None:
        _positive(
            learning_rate=self.learning_rate,
            max_steps=self.max_steps,
            per_device_train_batch_size=self.per_device_train_batch_size,
            gradient_accumulation_steps=self.gradient_accumulation_steps,
            steps_per_generation=self.steps_per_generation,
            num_iterations=self.num_iterations,
            epsilon=self.epsilon,
        )
        if self.num_generations < 2:
            raise ValueError(
                f"num_generations must be at least 2 to compare within a group, found {self.num_generations}"
            )
        if self.beta < 0:
            raise ValueError(f"beta must be at least 0, found {self.beta}")
        rollout = self.per_device_train_batch_size * self.steps_per_generation
        if rollout % self.num_generations:
            raise ValueError(
                f"per_device_train_batch_size x steps_per_generation ({rollout}) must be a multiple of "
                f"num_generations ({self.num_generations})"
            )
