"""The settings of GRPO (configs/algorithms/grpo.yaml). Light to import."""

from dataclasses import dataclass
from typing import Literal

from utils.frame.typed_settings import setting
from utils.rollouts.settings import GroupAlgo


@dataclass
class GrpoAlgo(GroupAlgo):
    """Group-relative policy optimisation (Shao et al. 2024, arXiv 2402.03300)."""

    num_generations: int = setting(8, "completions per prompt (G), compared within the group", at_least=2)
    loss_type: Literal["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"] = setting(
        "dapo", "clipping and averaging of token losses (docs/grpo.md)"
    )
    scale_rewards: Literal["group", "batch", "mean", "none"] = setting(
        "group",
        "what advantages are divided by: the deviation of the group or of the rollout, the group's mean "
        "(0 where that is not above 0), or nothing",
    )
    multi_objective_aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = setting(
        "sum_then_normalize",
        "whether the parts of the reward are added up before or after they are normalised",
    )
    importance_sampling_level: Literal["token", "sequence"] = setting("token", "level of the ratio")
    delta: float | None = setting(
        None, "most that a ratio weighs where the advantage is negative (two-sided clipping)", above=1
    )
    entropy_coef: float = setting(0.0, "weight of the entropy bonus in the loss", at_least=0)
    top_entropy_quantile: float = setting(
        1.0, "share of a micro-batch's tokens that are learnt from, those of most entropy", between=(0, 1)
    )
    off_policy_mask_threshold: float | None = setting(
        None,
        "leave out completions of negative advantage that are further from their sampler, nats per token",
    )
    supervision: Literal["outcome", "process"] = setting(
        "outcome", "process: the teacher's token rewards give every token an advantage of its own"
    )

    def validate(self) -> None:
        super().validate()
        if self.loss_type == "cispo" and (self.epsilon_high is None or self.epsilon_high < 1):
            raise ValueError(
                "loss_type cispo caps the ratio itself at epsilon_high, which must be at least 1 "
                f"(5.0 is usual), found {self.epsilon_high}"
            )
        if self.scale_rewards == "mean" and self.multi_objective_aggregation == "normalize_then_sum":
            raise ValueError("scale_rewards mean needs multi_objective_aggregation sum_then_normalize")
        level = {"luspo": "sequence", "vespo": "token"}.get(self.loss_type)
        if level and self.importance_sampling_level != level:
            raise ValueError(f"loss_type {self.loss_type} needs importance_sampling_level {level}")
