"""changes.jsonl: which items a policy answers that another does not, and the other way round."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from utils.comparison.over_seeds import Experiment
from utils.comparison.paired import Pair

CHANGES = "changes.jsonl"


def change_rows(pairs: Sequence[Pair]) -> Iterator[dict[str, Any]]:
    """{"a", "b", "id", "change"} of every item that b fixes or breaks against a, in file order of each."""
    for pair in pairs:
        for change in ("fixed", "broken"):
            for item in getattr(pair, change):
                yield {"a": pair.a, "b": pair.b, "id": item, "change": change}


def seed_change_rows(experiment: Experiment) -> Iterator[dict[str, Any]]:
    """The same within every seed, with ``seed``: pair by pair, seed by seed, in file order."""
    for a, b in combinations(range(len(experiment.policies)), 2):
        names = {"a": experiment.policies[a], "b": experiment.policies[b]}
        for place, seed in enumerate(experiment.seeds):
            right_a, right_b = experiment.correct[a, place], experiment.correct[b, place]
            for change, at in (("fixed", right_b & ~right_a), ("broken", right_a & ~right_b)):
                for index in np.flatnonzero(at):
                    yield names | {"seed": seed, "id": experiment.ids[index], "change": change}
