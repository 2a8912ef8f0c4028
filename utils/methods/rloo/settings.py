"""The settings of RLOO (configs/algorithms/rloo.yaml). Light to import."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from utils.frame.typed_settings import setting
from utils.rollouts.settings import GroupAlgo


@dataclass
class RlooAlgo(GroupAlgo):
    """REINFORCE leave-one-out (Ahmadian et al. 2024, arXiv 2402.14740).

    The KL penalty is part of the reward; ratios are those of whole completions.
    """

    num_samples: int = setting(8, "completions per prompt (G), compared within the group", at_least=2)
    baseline_type: Literal["loo", "mean", "none"] = setting(
        "loo", "taken off a reward: the mean of the others in the group; of all in it; nothing (REINFORCE)"
    )
    normalize_advantages: bool = setting(False, "advantages of a rollout to mean 0 and deviation 1")

    group_option: ClassVar[str] = "num_samples"
