"""The settings that methods on rollouts share. Light to import.

Names are those of TRL's configs, where it has them. Batches are those of all processes together, also where
TRL's name says per device: `batches.py` divides them. In these methods' stages the model tier's
``training.save_steps``, ``training.logging_steps`` and ``validation.eval_steps`` count rollouts.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from utils.curricula.settings import CurriculumSettings
from utils.frame.typed_settings import setting
from utils.training.settings import OptimizerSettings


@dataclass
class RolloutAlgo(OptimizerSettings):
    """What PPO, GRPO, RLOO and distillation share: rollouts of several completions per prompt.

    A rollout is split into ``steps_per_generation`` micro-batches of ``per_device_train_batch_size``
    completions, and is used for ``num_iterations`` passes; subclasses have these three. (Where
    ``gradient_accumulation_steps`` is more than a rollout serves, what one optimizer step takes counts as
    one rollout.)
    """

    num_rollouts: int = setting(64, "rollouts in all", above=0)
    curriculum: CurriculumSettings = field(default_factory=CurriculumSettings)

    group_option: ClassVar[str] = "num_generations"  # the setting that holds the completions per prompt
    size_option: ClassVar[str] = "per_device_train_batch_size x steps_per_generation"

    @property
    def group_size(self) -> int:
        """Completions per prompt."""
        return getattr(self, self.group_option)

    @property
    def rollout_size(self) -> int:
        """Completions per rollout, over all processes."""
        return self.per_device_train_batch_size * self.steps_per_generation

    @property
    def all_rollouts(self) -> int:
        """Rollouts sampled in all, also where an optimizer step takes several."""
        micro_batches = self.steps_per_generation * self.num_iterations
        return self.num_rollouts * max(1, self.gradient_accumulation_steps // micro_batches)

    @property
    def num_prompts(self) -> int:
        """Prompts drawn in all, over all processes."""
        return self.all_rollouts * (self.rollout_size // self.group_size)

    @property
    def sampled_completions(self) -> int:
        """Completions sampled in all, over all processes."""
        return self.num_prompts * self.group_size

    def validate(self) -> None:
        if self.rollout_size % self.group_size:
            raise ValueError(
                f"{self.size_option} ({self.rollout_size}) must be a multiple of {self.group_option} "
                f"({self.group_size})"
            )


@dataclass
class RewardedAlgo(RolloutAlgo):
    """What PPO, GRPO and RLOO share: groups of completions that are rewarded, and compared by it."""

    group_filter: Literal["none", "reward_std", "outcome"] = setting(
        "none",
        "which groups are replaced by new ones (dynamic sampling): none, those whose rewards are equal, or "
        "those all right or all wrong",
    )
    group_filter_limit: int = setting(
        4, "most that a rollout draws to be filled, in rollouts' worth of completions", at_least=1
    )
    overlong_buffer: float = setting(
        0.0,
        "last share of generation.max_new_tokens where completions lose up to 1 of their reward (DAPO 0.2)",
        between=(0, 1),
    )

    def validate(self) -> None:
        super().validate()
        if self.group_filter == "none":
            return
        if self.group_size < 2:
            raise ValueError(f"group_filter {self.group_filter} needs {self.group_option} above 1")
        if self.gradient_accumulation_steps > self.steps_per_generation * self.num_iterations:
            raise ValueError(
                f"group_filter {self.group_filter} needs rollouts that last an optimizer step: lower "
                "gradient_accumulation_steps"
            )


@dataclass
class MicroBatchAlgo(RolloutAlgo):
    """What GRPO, RLOO and distillation share: rollouts that are described by their micro-batches, or by their
    size as in PPO (``rollout_batch_size``), which ``steps_per_generation`` micro-batches then share.
    """

    rollout_batch_size: int | None = setting(
        None,
        "completions per rollout; null: per_device_train_batch_size x steps_per_generation",
        at_least=1,
    )
    per_device_train_batch_size: int = setting(
        64, "completions per micro-batch, shared by the processes", above=0
    )
    steps_per_generation: int = setting(2, "micro-batches a rollout is split into", above=0)
    num_iterations: int = setting(2, "passes over each rollout (mu)", above=0)

    def __post_init__(self) -> None:
        if self.rollout_batch_size and self.steps_per_generation > 0:
            self.per_device_train_batch_size = max(1, self.rollout_batch_size // self.steps_per_generation)

    def validate(self) -> None:
        if self.rollout_batch_size and self.rollout_batch_size % self.steps_per_generation:
            raise ValueError(
                f"rollout_batch_size ({self.rollout_batch_size}) must be a multiple of steps_per_generation "
                f"({self.steps_per_generation})"
            )
        super().validate()


@dataclass
class GroupAlgo(RewardedAlgo, MicroBatchAlgo):
    """What GRPO and RLOO share: rollouts of groups, whose completions are compared with each other."""

    beta: float = setting(0.005, "weight of the KL penalty (to the reference policy)", at_least=0)
    epsilon: float = setting(0.2, "clip range of the probability ratio", above=0)
    epsilon_high: float | None = setting(None, "upper clip range; null: epsilon")
    mask_truncated_completions: bool = setting(False, "leave completions without an end out of the loss")
