"""The reward specification: written once per run by stage 02, read by every stage after it."""

import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import yaml

from utils.frame.config import load_tier
from utils.frame.files import UserError, resolve_path, write_text
from utils.frame.pipeline import REWARDS
from utils.frame.typed_settings import setting


@dataclass
class RewardWeights:
    """What each component is multiplied by before they are added up; 0 leaves it out."""

    intrinsic: float = setting(0.1, "token-level reward read from the teacher's logits", at_least=0)
    correctness: float = setting(1.0, "exact_match, numeric_match and program_partial", at_least=0)
    reasoning: float = setting(0.0, "reasoning-quality score, in [0, 1], made without the gold", at_least=0)
    format: float = setting(1.0, "format_penalty", at_least=0)


@dataclass
class IntrinsicSection:
    """How the teacher's logits become token rewards (utils/rewards/intrinsic.py, normalisers.py).

    The weight applies last: weight * (normalised rewards - penalty).
    """

    form: Literal["bellman", "logprob", "bellman_centered"] = setting(
        "logprob", "Q(s,a) - gamma V(s'); Q(s,a) - V(s); the first with V(s_1) taken off"
    )
    alpha: float = setting(1.0, "temperature of the soft values; 1 is the teacher as trained", above=0)
    normaliser: Literal["none", "mean_std", "z_score", "min_max", "robust"] = setting(
        "none", "what token rewards are divided by"
    )
    scope: Literal["batch", "running"] = setting("batch", "statistics of the rollout, or of all so far")
    center: bool = setting(False, "also subtract the middle: the same for every token, so length counts")
    clip: float | None = setting(None, "bound on a normalised reward's size; null for none", above=0)
    missing_eos_penalty: float = setting(
        0.0, "taken off the last token of a completion cut at the limit", at_least=0
    )


@dataclass
class AdaptiveSection:
    """Weights that follow the evidence (utils/rewards/combiner.py): factor on intrinsic and reasoning."""

    enabled: bool = setting(False, "lower the weight of what does not rank right above wrong answers")
    rate: float = setting(0.1, "weight of the newest rollout in the running evidence", above=0, at_most=1)
    minimum_factor: float = setting(0.1, "lowest factor on a weight; the highest is 1")
    initial_factor: float = setting(1.0, "factor before any rollout")

    def validate(self) -> None:
        if not 0 <= self.minimum_factor <= self.initial_factor <= 1:
            raise ValueError(
                "0 <= minimum_factor <= initial_factor <= 1 must hold, "
                f"found {self.minimum_factor} and {self.initial_factor}"
            )


@dataclass
class OwnComponent:
    """A user-defined component: a function of record and completion (user_components.py)."""

    file: str = setting("", "Python file that holds the function")
    function: str = setting("", "its name; empty: the component's")
    weight: float = setting(0.0, "what its value is multiplied by; 0: measured and audited alone", at_least=0)
    source: str = setting("", "the file's text, put here by 02: a run keeps what it was begun with")

    def validate(self) -> None:
        if not self.file:
            raise ValueError("file must name the Python file that holds the function")


# What candidates, logs and reports call other parts of a reward.
TAKEN = (
    *("exact_match", "numeric_match", "program_partial", "format_penalty", "correctness", "format"),
    *("reasoning", "intrinsic", "intrinsic_per_token", "overlong", "total", "brevity"),
)


@dataclass
class RewardSpec:
    """What a completion is rewarded with (task_reward.py); also the reward tier, configs/rewards/*.yaml.

    For its content a wrong answer never earns as much as a right one: ``numeric_match`` and
    ``program_partial`` stay below ``exact_match``, and at most one of the three is given. The form has a
    part of its own: by default a right answer in a wrong form earns as much as a near miss in the right one.
    """

    exact_match: float = setting(1.0, "the answer is right by the data set's official rule", above=0)
    numeric_match: float = setting(0.8, "a wrong number close to the gold (exclusive with exact_match)")
    numeric_tolerance: float = setting(0.05, "how close: relative to the gold", at_least=0, below=1)
    program_partial: float = setting(0.3, "times the share of gold program steps, where the answer is wrong")
    format_penalty: float = setting(-0.2, "the completion is not of the form that was asked for", at_most=0)
    weights: RewardWeights = field(default_factory=RewardWeights)
    intrinsic: IntrinsicSection = field(default_factory=IntrinsicSection)
    adaptive: AdaptiveSection = field(default_factory=AdaptiveSection)
    required_fields: list[str] = setting([], "JSON fields to fill; empty for the data set's own")
    own: dict[str, OwnComponent] = setting({}, "user-defined components by name (docs/extending.md)")

    def validate(self) -> None:
        if not any([*asdict(self.weights).values(), *(each.weight for each in self.own.values())]):
            raise ValueError("weights: at least one weight must be above 0, or nothing would be rewarded")
        for name in self.own:
            if name in TAKEN or not re.fullmatch("[a-z][a-z0-9_]*", name):
                raise ValueError(
                    f'own.{name}: the name must be small letters, digits and "_", and none of '
                    f"{', '.join(TAKEN)}"
                )
        for name in ("numeric_match", "program_partial"):
            if not 0 <= getattr(self, name) < self.exact_match:
                raise ValueError(
                    f"{name} must be at least 0 and below exact_match ({self.exact_match}), "
                    f"found {getattr(self, name)}: a wrong answer must not earn as much as a right one"
                )


def paid_weights(spec: RewardSpec, reward: str) -> RewardWeights:
    """The weights in force under ``--reward``: "task" leaves the intrinsic reward out, "intrinsic" everything
    else, "combined" nothing.

    Raises UserError where the specification gives what is left no weight.
    """
    if reward not in REWARDS:
        raise UserError(f"reward must be one of {', '.join(REWARDS)}, found {reward!r}")
    given = spec.weights
    if reward == "combined":
        return given
    if reward == "task":
        weights = replace(given, intrinsic=0.0)
    else:
        weights = RewardWeights(given.intrinsic, correctness=0.0, reasoning=0.0, format=0.0)
    if not any([*asdict(weights).values(), *own_weights(spec, reward).values()]):
        other = "task" if reward == "intrinsic" else "intrinsic"
        raise UserError(
            f"--reward {reward}: 02_rewards/reward_spec.yaml gives it no weight; run 02_build_rewards.py "
            f"again with --reward_config configs/rewards/combined.yaml, or use --reward {other}"
        )
    return weights


def own_weights(spec: RewardSpec, reward: str) -> dict[str, float]:
    """The weights in force of user-defined components: as those of the task, so 0 under "intrinsic"."""
    return {name: 0.0 if reward == "intrinsic" else own.weight for name, own in spec.own.items()}


def weights_in_force(spec: RewardSpec, reward: str) -> dict[str, float]:
    """What every component is multiplied by under ``reward``, user-defined ones included, for a manifest."""
    return asdict(paid_weights(spec, reward)) | own_weights(spec, reward)


def own_files(spec: RewardSpec) -> dict[str, Path]:
    """The files of a reward tier's own components, as inputs of the stage that copies them."""
    return {f"own_{name}": resolve_path(own.file) for name, own in spec.own.items()}


def verified(spec: RewardSpec) -> RewardSpec:
    """The specification that a policy is validated by, whatever it is trained on: task parts alone.

    Their weights are the specification's, or the default ones where it gives correctness none: a
    policy trained on its teacher alone is still chosen by what can be verified.
    """
    weights = spec.weights if spec.weights.correctness > 0 else RewardWeights()
    return replace(spec, weights=replace(weights, intrinsic=0.0, reasoning=0.0), own={})


_HEADER = "# The reward of this run: written by 02_build_rewards.py, read by every stage after it.\n"


def write_reward_spec(path: str | Path, spec: RewardSpec) -> None:
    """Write ``reward_spec.yaml``, keys in the order of the fields, atomically."""
    fields = asdict(spec)
    if not spec.own:
        del fields["own"]  # most runs have none, and need not read of it
    write_text(path, _HEADER + yaml.dump(fields, Dumper=_Dumper, sort_keys=False))


class _Dumper(yaml.SafeDumper):
    """YAML in which a text of several lines stands as it is."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    ),
)


def load_reward_spec(path: str | Path) -> RewardSpec:
    """Read ``reward_spec.yaml``. Raises UserError naming file and key for anything that is not a spec."""
    return load_tier(RewardSpec, path)
