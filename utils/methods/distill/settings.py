"""The settings of distillation (configs/algorithms/distill.yaml). Light to import: the driver reads them."""

from dataclasses import dataclass
from typing import Literal

from utils.frame.config import setting
from utils.frame.typed_settings import above, at_least, within
from utils.rollouts.settings import RolloutAlgo


@dataclass
class DistillAlgo(RolloutAlgo):
    """Distillation of a teacher into the student, on its own samples, on gold text or on both.

    A rollout holds ``per_device_train_batch_size * steps_per_generation`` completions,
    ``num_generations`` of each prompt, and is used for ``num_iterations`` passes. In this stage the model
    tier's ``training.save_steps``, ``training.logging_steps`` and ``validation.eval_steps`` count rollouts.
    """

    learning_rate: float = setting(1e-3, "peak learning rate of AdamW")
    lr_scheduler_type: str = setting("linear", "schedule, as Transformers names it")
    num_generations: int = setting(8, "completions per prompt; 1 where gold text is learnt from")
    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = setting(
        "reverse_kl", "KL(teacher || student), KL(student || teacher), or between both (docs/distillation.md)"
    )
    beta: float = setting(0.5, "jsd: weight of the teacher in the mixture, between 0 and 1")
    temperature: float = setting(
        1.0, "softens both distributions in the divergence, which is multiplied by its square; not sampling"
    )
    top_k: int | None = setting(
        None, "compare the teacher's k likeliest tokens, and all others as one; null: the whole vocabulary"
    )
    ce_weight: float = setting(0.0, "weight of cross-entropy on gold; the divergence has the rest up to 1")
    on_policy_fraction: float = setting(
        1.0, "share of a rollout's prompts that the student answers itself; the others have their gold text"
    )

    @property
    def prompts_per_rollout(self) -> int:
        """Prompts per rollout, over all processes."""
        return self.rollout_size // self.num_generations

    @property
    def num_prompts(self) -> int:
        """Prompts drawn in all, over all processes."""
        return self.num_rollouts * self.prompts_per_rollout

    @property
    def sampled_completions(self) -> int:
        """Completions sampled in all, over all processes; gold text is not sampled."""
        prompts = sampled_prompts(self.on_policy_fraction, self.prompts_per_rollout)
        return self.num_rollouts * prompts * self.num_generations

    def validate(self) -> None:
        self._validate_rollouts("num_generations", self.num_generations)
        above(0, temperature=self.temperature)
        at_least(0, warmup_steps=self.warmup_steps, weight_decay=self.weight_decay)
        within(0, 1, ce_weight=self.ce_weight, on_policy_fraction=self.on_policy_fraction)
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(
                f"top_k must be at least 1, or null for the whole vocabulary, found {self.top_k}"
            )
        if self.divergence == "jsd" and not 0 < self.beta < 1:
            raise ValueError(
                f"beta must be between 0 and 1, both excluded, found {self.beta}: "
                "the ends are divergence forward_kl and reverse_kl"
            )
        if self.steps_per_generation % self.gradient_accumulation_steps:
            raise ValueError(
                f"steps_per_generation ({self.steps_per_generation}) must be a multiple of "
                f"gradient_accumulation_steps ({self.gradient_accumulation_steps}): "
                "a pass over a rollout takes whole optimizer steps"
            )
        if self.on_policy_fraction < 1 and self.num_generations > 1:
            raise ValueError(
                f"on_policy_fraction {self.on_policy_fraction:g} needs num_generations 1, found "
                f"{self.num_generations}: gold text has one completion per prompt"
            )


def sampled_prompts(fraction: float, prompts: int) -> int:
    """How many of a rollout's prompts the student answers itself: the nearest whole number, halves up."""
    return int(fraction * prompts + 0.5)
