"""Names and settings of curricula (configs/algorithms/*.yaml, section ``curriculum``). Light to import."""

from dataclasses import asdict, dataclass, field
from typing import Literal

from utils.frame.typed_settings import setting


@dataclass
class SignalWeights:
    """What an arm of sec is rewarded for, each signal scaled to [0, 1]; only their ratios matter."""

    abs_advantage: float = setting(
        0.0, "sec: weight of the mean |advantage| of an arm's completions", at_least=0
    )
    confidence_gap: float = setting(
        0.0,
        "sec, distillation: weight of the teacher's less the student's probability of gold tokens",
        at_least=0,
    )
    probe_kl_drop: float = setting(
        0.0,
        "sec, distillation: weight of the drop of KL(teacher|student) on probe_size gold texts of an arm",
        at_least=0,
    )

    def given(self) -> dict[str, float]:
        """The weights that are not 0."""
        return {name: weight for name, weight in asdict(self).items() if weight}


@dataclass
class CurriculumSettings:
    """Settings of all curricula; ``--curriculum`` chooses one, docs/curricula.md defines them."""

    start_fraction: float = setting(
        0.2, "easy_to_hard, hard_to_easy: share of the records in the pool at first", above=0, at_most=1
    )
    pacing_fraction: float = setting(
        0.7,
        "easy_to_hard, hard_to_easy: share of the rollouts after which all records are in the pool",
        above=0,
        at_most=1,
    )
    arms: Literal["level", "type", "type_level"] = setting("level", "sec: what makes an arm")
    alpha: float = setting(0.5, "sec: step size of Q <- (1 - alpha) Q + alpha r", above=0, at_most=1)
    tau: float = setting(
        0.4, "sec: temperature of the Boltzmann choice, in units of the reward ([0, 1])", above=0
    )
    floor: float = setting(
        0.1, "sec: least probability of an arm, as a share of 1 / number of arms", between=(0, 1)
    )
    decay_unvisited: bool = setting(
        False,
        "sec: arms without a prompt in a rollout count as rewarded 0 (the published code, not the paper)",
    )
    weights: SignalWeights = field(default_factory=SignalWeights)
    percentile: float | None = setting(
        90.0,
        "sec: the percentile of a signal's recent values that becomes reward 1; null: clip at 1 only",
        above=0,
        at_most=100,
    )
    scale_window: int = setting(16, "sec: rollouts whose values the percentile is taken over", above=0)
    probe_size: int = setting(
        8, "sec, probe_kl_drop: gold texts of each arm that are measured every rollout", above=0
    )
    pass_rate_low: float = setting(0.2, "pass_rate: least recent success within the band", between=(0, 1))
    pass_rate_high: float = setting(0.8, "pass_rate: highest recent success within the band", between=(0, 1))
    success_alpha: float = setting(
        0.5, "pass_rate: weight of the last visit in a prompt's recent success", above=0, at_most=1
    )
    unseen_share: float = setting(
        0.5, "pass_rate: of the draws not outside the band, those of unseen prompts", between=(0, 1)
    )
    exploration: float = setting(
        0.1, "pass_rate: share of the draws outside the band, so that prompts return", between=(0, 1)
    )

    def validate(self) -> None:
        if self.pass_rate_low > self.pass_rate_high:
            raise ValueError(
                f"pass_rate_low ({self.pass_rate_low}) must not exceed pass_rate_high ({self.pass_rate_high})"
            )
