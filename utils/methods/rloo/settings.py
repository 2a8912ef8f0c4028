"""The settings of RLOO (configs/algorithms/rloo.yaml). Light to import."""

from dataclasses import dataclass
from typing import Literal

from utils.frame.config import setting
from utils.rollouts.settings import GroupAlgo


@dataclass
class RlooAlgo(GroupAlgo):
    """REINFORCE leave-one-out (Ahmadian et al. 2024, arXiv 2402.14740; configs/algorithms/rloo.yaml).

    Rollouts and their passes are those of GRPO, with ``num_samples`` completions of each prompt. The KL
    penalty is part of the reward; ratios are those of whole completions. In this stage the model tier's
    ``training.save_steps``, ``training.logging_steps`` and ``validation.eval_steps`` count rollouts.
    """

    beta: float = setting(0.05, "weight of the KL penalty to the reference policy, in the reward")
    num_samples: int = setting(8, "completions per prompt (G)")
    baseline_type: Literal["loo", "mean", "none"] = setting(
        "loo", "taken off a reward: the mean of the others in the group; of all in it; nothing (REINFORCE)"
    )
    normalize_advantages: bool = setting(False, "advantages of a rollout to mean 0 and deviation 1")

    @property
    def num_prompts(self) -> int:
        """Prompts drawn in all, over all processes."""
        return self.sampled_completions // self.num_samples

    def validate(self) -> None:
        self._validate_groups("num_samples", self.num_samples)
