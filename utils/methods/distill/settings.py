"""The settings of distillation (configs/algorithms/distill.yaml). Light to import: the driver reads them."""

from dataclasses import dataclass
from typing import Literal

from utils.frame.typed_settings import setting
from utils.rollouts.settings import MicroBatchAlgo


@dataclass
class DistillLoss:
    """What is minimised, and on which text: what `GroupDistillationConfig` takes as it is."""

    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = setting(
        "reverse_kl", "KL(teacher || student), KL(student || teacher), or between both (docs/distillation.md)"
    )
    beta: float = setting(0.5, "jsd: weight of the teacher in the mixture, between 0 and 1")
    ce_weight: float = setting(
        0.0, "weight of cross-entropy on gold; the divergence has the rest up to 1", between=(0, 1)
    )
    on_policy_fraction: float = setting(
        1.0,
        "share of a rollout's prompts that the student answers itself; the others have their gold text",
        between=(0, 1),
    )


@dataclass
class DistillAlgo(DistillLoss, MicroBatchAlgo):
    """Distillation of a teacher into the student, on its own samples, on gold text or on both."""

    num_generations: int = setting(8, "completions per prompt; 1 where gold text is learnt from", above=0)
    temperature: float = setting(
        1.0,
        "softens both distributions in the divergence, which is multiplied by its square; not sampling",
        above=0,
    )
    top_k: int | None = setting(
        None,
        "compare the teacher's k likeliest tokens, and all others as one; null: the whole vocabulary",
        at_least=1,
    )

    @property
    def sampled_completions(self) -> int:
        """Completions sampled in all, over all processes; gold text is not sampled."""
        prompts = sampled_prompts(self.on_policy_fraction, self.rollout_size // self.num_generations)
        return self.num_rollouts * prompts * self.num_generations

    def validate(self) -> None:
        super().validate()
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
