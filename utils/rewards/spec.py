"""The reward specification: written once per run by stage 02, read by every stage after it."""

from dataclasses import asdict, dataclass, field
from pathlib import Path

import yaml

from utils.common import write_text
from utils.config import load_tier, setting


@dataclass
class RewardWeights:
    """Factors on the parts that are combined with the task reward."""

    intrinsic: float = setting(0.0, "token-level reward read from the teacher's logits")
    reasoning: float = setting(0.0, "reasoning-quality score")
    format: float = setting(1.0, "format penalty")

    def validate(self) -> None:
        for name in ("intrinsic", "reasoning", "format"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, found {getattr(self, name)}")


@dataclass
class RewardSpec:
    """What a completion is paid (see utils/rewards/task.py); also the reward tier, configs/rewards/*.yaml.

    A wrong answer never earns as much as a right one: ``numeric_match`` and ``program_partial`` stay below
    ``exact_match``, and at most one of the three is paid.
    """

    exact_match: float = setting(1.0, "the answer is right by the data set's official rule")
    numeric_match: float = setting(0.8, "a wrong number close to the gold (exclusive with exact_match)")
    numeric_tolerance: float = setting(0.05, "how close: relative to the gold")
    program_partial: float = setting(0.3, "times the share of gold program steps, where the answer is wrong")
    format_penalty: float = setting(-0.2, "the completion has not the form that was asked for")
    weights: RewardWeights = field(default_factory=RewardWeights)
    required_fields: list[str] = setting([], "JSON fields to fill; empty for the data set's own")

    def validate(self) -> None:
        if self.exact_match <= 0:
            raise ValueError(f"exact_match must be above 0, found {self.exact_match}")
        for name in ("numeric_match", "program_partial"):
            if not 0 <= getattr(self, name) < self.exact_match:
                raise ValueError(
                    f"{name} must be at least 0 and below exact_match ({self.exact_match}), "
                    f"found {getattr(self, name)}: a wrong answer must not earn as much as a right one"
                )
        if not 0 <= self.numeric_tolerance < 1:
            raise ValueError(f"numeric_tolerance must be in [0, 1), found {self.numeric_tolerance}")
        if self.format_penalty > 0:
            raise ValueError(f"format_penalty must be at most 0, found {self.format_penalty}")


_HEADER = "# The reward of this run: written by 02_build_rewards.py, read by every stage after it.\n"


def write_reward_spec(path: str | Path, spec: RewardSpec) -> None:
    """Write ``reward_spec.yaml``, keys in the order of the fields, atomically."""
    write_text(path, _HEADER + yaml.safe_dump(asdict(spec), sort_keys=False))


def load_reward_spec(path: str | Path) -> RewardSpec:
    """Read ``reward_spec.yaml``. Raises UserError naming file and key for anything that is not a spec."""
    return load_tier(RewardSpec, path)
