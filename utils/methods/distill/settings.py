"""The settings of distillation (configs/algorithms/distill.yaml). Light to import: the driver reads them."""

from dataclasses import dataclass
from typing import Literal

from utils.frame.typed_settings import setting
from utils.rollouts.settings import MicroBatchAlgo


@dataclass
class DistillLoss:
    """What is minimised, and on which text: what `GroupDistillationConfig` takes as it is."""

    divergence: Literal["forward_kl", "reverse_kl", "jsd", "sampled_kl"] = setting(
        "reverse_kl",
        "KL(teacher || student), KL(student || teacher), or between both (docs/distillation.md); sampled_kl: "
        "the second by policy gradient on the sampled tokens (docs/methods.md)",
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
    reward_scale: float = setting(
        1.0, "sampled_kl: weight of the teacher against the start policy (ExOPD: 1.25)", at_least=0
    )
    kl_baseline: bool = setting(False, "sampled_kl: take the expected reward, minus the exact KL, off (vOPD)")
    reward_mixture: float | None = setting(
        None, "sampled_kl: l bounds rewards from below by log(l / (1 - l)) (REOPOLD: 0.3); null: no bound"
    )
    exploration_fraction: float = setting(
        0.0,
        "sampled_kl: first share of the training, which leaves out tokens below that bound",
        between=(0, 1),
    )
    top_entropy_quantile: float = setting(
        1.0,
        "sampled_kl: share of a rollout's tokens that are learnt from after it, those of most entropy",
        between=(0, 1),
    )

    def _validate_samples(self) -> None:
        """Raise ValueError for settings of sampled_kl that cannot be."""
        names = (
            "reward_scale",
            "kl_baseline",
            "reward_mixture",
            "exploration_fraction",
            "top_entropy_quantile",
        )
        given = [name for name in names if getattr(self, name) != getattr(DistillLoss, name)]
        if self.divergence != "sampled_kl":
            if given:
                raise ValueError(f"{given[0]} is of divergence sampled_kl, found {self.divergence}")
        elif self.on_policy_fraction < 1:
            raise ValueError("divergence sampled_kl learns from samples alone: set on_policy_fraction to 1")
        if self.kl_baseline and (self.reward_scale != 1 or self.reward_mixture is not None):
            raise ValueError(
                "kl_baseline is that of the plain reward: leave out reward_scale and reward_mixture"
            )
        if self.reward_mixture is not None and not 0 < self.reward_mixture < 1:
            raise ValueError(
                f"reward_mixture must be between 0 and 1, both excluded, found {self.reward_mixture}"
            )
        if self.exploration_fraction and self.reward_mixture is None:
            raise ValueError("exploration_fraction goes by the bound on rewards: set reward_mixture")


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
        self._validate_samples()
        if self.divergence == "sampled_kl" and self.temperature != 1:
            raise ValueError("divergence sampled_kl is of the sampled distributions: leave temperature at 1")
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
