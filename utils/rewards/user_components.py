"""User-defined reward components: one function each, named in the reward tier (docs/extending.md).

    own:
      short_answer:                      # the component's name, in every log, table and audit
        file: my_rewards.py              # holds  def short_answer(record, completion): return 0.5
        weight: 0.2                      # what it is multiplied by; 0: measured and audited alone

The function gets the record (`utils.data.records.Record`) and the decoded completion, which a model wrote and
which can hold anything, and returns a finite number. The same arguments must always give the same number:
a completion that comes again is not scored again. 02 copies the function's file into reward_spec.yaml.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from numbers import Real
from pathlib import Path

from utils.data.records import Record
from utils.frame.config import StageConfig
from utils.frame.credentials import redact
from utils.frame.files import UserError, resolve_path, shown
from utils.frame.user_code import Function, load_function, read_source
from utils.rewards.spec import RewardSpec

LARGEST = 1e6  # of a value's size: rewards are float32, and larger ones drown the others' digits


@dataclass(frozen=True)
class OwnReward:
    """A user-defined component, ready to be asked."""

    name: str
    weight: float
    function: Function

    def score(self, record: Record, completion: str) -> float:
        """The component of one completion, unweighted.

        Raises UserError naming file and record where the function raises, or returns no finite number.
        """
        # A table is a list: what the function does to it must not change how the record is graded.
        given = replace(record, table=[list(cells) for cells in record.table])
        try:
            value = self.function(given, completion)
        except UserError as error:
            raise UserError(f"{error} (own reward {self.name}, record {record.id})") from None
        if not isinstance(value, Real) or not abs(float(value)) <= LARGEST:
            raise UserError(
                f"{self.function.where}: {self.function.name}() must return a number of at most {LARGEST:g} "
                f"in size, found {value!r:.60} (own reward {self.name}, record {record.id})"
            )
        return float(value)


def own_rewards(spec: RewardSpec) -> list[OwnReward]:
    """The components of a specification that 02 has written, in its order.

    Raises UserError where a function cannot be had from the text in it.
    """
    return [
        OwnReward(
            name,
            own.weight,
            load_function(own.source, own.file, own.function or name, ("record", "completion")),
        )
        for name, own in spec.own.items()
    ]


def own_fits(config: StageConfig, run_dir: Path) -> None:
    """Raise UserError where a function that the reward tier names cannot be called."""
    own_rewards(with_sources(config.reward))


def with_sources(spec: RewardSpec) -> RewardSpec:
    """The specification with the text of every file in place of its path.

    Raises UserError for a file that cannot be read, or that holds an access token.
    """
    kept = {}
    for name, own in spec.own.items():
        path = resolve_path(own.file)
        source = read_source(path)
        if redact(source) != source:
            raise UserError(
                f"{shown(path)}: holds an access token, and would be copied into reward_spec.yaml: "
                "let the file read it from the environment"
            )
        kept[name] = replace(own, file=path.name, source=source)
    return replace(spec, own=kept)


def check_own(rewards: Sequence[OwnReward], examples: Sequence[tuple[Record, str]]) -> Mapping[str, float]:
    """Ask every component about examples (record, completion) and an empty completion, before training does.

    Returns the mean over the examples by component. Raises UserError where a function fails, or says two
    things of the same completion.
    """
    means = {}
    for reward in rewards:
        ask = partial(_asked_twice, reward)
        values = [ask(record, completion) for record, completion in examples]
        ask(examples[0][0], "")
        means[reward.name] = round(sum(values) / len(values), 6)
    return means


def _asked_twice(reward: OwnReward, record: Record, completion: str) -> float:
    first, second = reward.score(record, completion), reward.score(record, completion)
    if first != second:
        raise UserError(
            f"{reward.function.where}: {reward.function.name}() says {first:g}, then {second:g} of the same "
            f"completion; it must depend on nothing else (own reward {reward.name}, record {record.id})"
        )
    return first
