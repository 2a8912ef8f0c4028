"""The settings that methods on rollouts share. Light to import.

Names are those of TRL's configs, where it has them. Batches are those of all processes together, also where
TRL's name says per device: `batches.py` divides them.
"""

from dataclasses import dataclass, field

from utils.curricula.settings import CurriculumSettings
from utils.frame.config import setting
from utils.frame.typed_settings import above, at_least


@dataclass
class RolloutAlgo:
    """What GRPO, RLOO and distillation share: the optimizer, and rollouts and their passes."""

    learning_rate: float = setting(5e-4, "peak learning rate of AdamW")
    lr_scheduler_type: str = setting("constant_with_warmup", "schedule, as Transformers names it")
    warmup_steps: int = setting(5, "optimizer steps of linear warm-up")
    weight_decay: float = setting(0.0, "AdamW's decoupled weight decay")
    num_rollouts: int = setting(64, "rollouts in all")
    per_device_train_batch_size: int = setting(64, "completions per micro-batch, shared by the processes")
    gradient_accumulation_steps: int = setting(1, "micro-batches per optimizer step")
    steps_per_generation: int = setting(2, "micro-batches a rollout is split into")
    num_iterations: int = setting(2, "passes over each rollout (mu)")
    curriculum: CurriculumSettings = field(default_factory=CurriculumSettings)

    @property
    def rollout_size(self) -> int:
        """Completions per rollout, over all processes."""
        return self.per_device_train_batch_size * self.steps_per_generation

    def _validate_rollouts(self, name: str, size: int) -> None:
        """Check what is shared; ``name`` is the setting that holds the completions per prompt."""
        above(
            0,
            learning_rate=self.learning_rate,
            num_rollouts=self.num_rollouts,
            per_device_train_batch_size=self.per_device_train_batch_size,
            gradient_accumulation_steps=self.gradient_accumulation_steps,
            steps_per_generation=self.steps_per_generation,
            num_iterations=self.num_iterations,
            **{name: size},
        )
        if self.rollout_size % size:
            raise ValueError(
                f"per_device_train_batch_size x steps_per_generation ({self.rollout_size}) must be a "
                f"multiple of {name} ({size})"
            )


@dataclass
class GroupAlgo(RolloutAlgo):
    """What GRPO and RLOO share: rollouts of groups, whose completions are compared with each other."""

    beta: float = setting(0.0, "weight of the KL penalty to the reference policy")
    epsilon: float = setting(0.2, "clip range of the probability ratio")
    epsilon_high: float | None = setting(None, "upper clip range; null: epsilon")
    mask_truncated_completions: bool = setting(False, "leave completions without an end out of the loss")

    @property
    def all_rollouts(self) -> int:
        """Rollouts sampled in all, also where an optimizer step takes several."""
        micro_batches = self.steps_per_generation * self.num_iterations
        return self.num_rollouts * max(1, self.gradient_accumulation_steps // micro_batches)

    @property
    def sampled_completions(self) -> int:
        """Completions sampled in all, over all processes."""
        return self.all_rollouts * self.rollout_size

    def _validate_groups(self, name: str, size: int) -> None:
        """Check everything shared; ``name`` is the setting that holds the completions per prompt."""
        above(0, epsilon=self.epsilon)
        if size < 2:
            raise ValueError(f"{name} must be at least 2 to compare within a group, found {size}")
        at_least(0, beta=self.beta)
        self._validate_rollouts(name, size)
