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
    scale_rewards: Literal["group", "batch", "none"] = setting("group", "what advantages are divided by")
    importance_sampling_level: Literal["token", "sequence"] = setting("token", "level of the ratio")
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
        level = {"luspo": "sequence", "vespo": "token"}.get(self.loss_type)
        if level and self.importance_sampling_level != level:
            raise ValueError(f"loss_type {self.loss_type} needs importance_sampling_level {level}")
