"""Policies compared item by item: what stage 10 found of each, and the tests of every pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from utils.comparison.answer_files import read_breakdown
from utils.comparison.estimates import Estimate, estimate_of
from utils.frame.files import UserError, derive_seed, read_json
from utils.statistics.accuracy_tests import bootstrap_difference, holm, mcnemar, minimum_detectable_difference

ALPHA = 0.05
POWER = 0.8


@dataclass(frozen=True, eq=False)
class PolicyResult:
    """What stage 10 found for one policy.

    Attributes:
        items: by id in file order, the columns ``correct`` (bool), ``level`` (int or None) and ``gold``.
        metrics: metrics.json.
    """

    name: str
    items: pd.DataFrame
    metrics: dict[str, Any]

    @property
    def accuracy(self) -> Estimate:
        """The share of items answered correctly, as stage 10 states it."""
        return estimate_of(self.metrics["accuracy"])


@dataclass(frozen=True)
class Pair:
    """Policy B against policy A on the items that both answered.

    Attributes:
        difference: accuracy of B minus accuracy of A on the shared items.
        ci95: paired bootstrap interval of the difference.
        fixed, broken: ids that B gains and loses against A.
        p_value, p_holm: exact McNemar, raw and corrected over all pairs of the comparison.
        detectable: smallest true difference that the test finds with 80 % power at the level of Holm's
            strictest step (0.05 / number of pairs), None where no difference could be significant.
    """

    a: str
    b: str
    n: int
    accuracy_a: float
    accuracy_b: float
    ci95: tuple[float, float]
    p_value: float
    detectable: float | None
    fixed: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    p_holm: float = 1.0

    @property
    def difference(self) -> float:
        return self.accuracy_b - self.accuracy_a

    @property
    def significant(self) -> bool:
        return self.p_holm < ALPHA


def load_result(name: str, metrics_path: Path, breakdown_path: Path) -> PolicyResult:
    """Read one policy's metrics.json and breakdown.csv; UserError as `read_breakdown` has it."""
    rows = pd.DataFrame(read_breakdown(breakdown_path), dtype=object).set_index("id")
    items = rows[["correct", "level", "gold"]].astype({"correct": bool})
    return PolicyResult(name, items, read_json(metrics_path))


def side_by_side(a: PolicyResult, b: PolicyResult, named: str) -> pd.DataFrame:
    """The items that both were given in the order of A's, their columns ending in ``_a`` and ``_b``.

    ``named`` says which two these are. Raises UserError where data set, split or an item's gold differ.
    """
    for key in ("dataset", "split"):
        if a.metrics.get(key) != b.metrics.get(key):
            raise UserError(
                f"cannot compare {named}: {key} is {a.metrics.get(key)!r} for one and "
                f"{b.metrics.get(key)!r} for the other; evaluate both on the same items"
            )
    both = a.items.add_suffix("_a").join(b.items.add_suffix("_b"), how="inner")
    for item, row in both[both["gold_a"] != both["gold_b"]].iterrows():
        raise UserError(
            f"cannot compare {named}: item '{item}' has gold {row['gold_a']!r} for one and {row['gold_b']!r} "
            "for the other; evaluate both on the same data"
        )
    return both


def compare_pair(a: PolicyResult, b: PolicyResult, seed: int, alpha: float = ALPHA) -> Pair:
    """Test B against A on the items they share.

    Raises UserError where the two were evaluated on different data: another data set or split, no item in
    common, or the same id with different golds.
    """
    named = f"'{a.name}' with '{b.name}'"
    both = side_by_side(a, b, named)
    if len(both) < 2:
        raise UserError(f"cannot compare {named}: {len(both)} items in common, need 2")
    right_a, right_b = both["correct_a"].to_numpy(), both["correct_b"].to_numpy()
    test = mcnemar(right_a, right_b)
    discordance = (test.fixed + test.broken) / len(both)
    rng = np.random.default_rng(derive_seed(seed, "bootstrap", a.name, b.name))
    return Pair(
        a=a.name,
        b=b.name,
        n=len(both),
        accuracy_a=float(right_a.mean()),
        accuracy_b=float(right_b.mean()),
        ci95=bootstrap_difference(right_a, right_b, rng),
        p_value=test.p_value,
        detectable=minimum_detectable_difference(len(both), discordance, alpha, POWER),
        fixed=both.index[right_b & ~right_a].tolist(),
        broken=both.index[right_a & ~right_b].tolist(),
    )


def compare_all(results: Sequence[PolicyResult], seed: int) -> list[Pair]:
    """Every pair of policies, in order, with Holm's correction over all of them."""
    couples = list(combinations(results, 2))
    pairs = [compare_pair(a, b, seed, ALPHA / len(couples)) for a, b in couples]
    corrected = holm([pair.p_value for pair in pairs])
    return [replace(pair, p_holm=p) for pair, p in zip(pairs, corrected, strict=True)]
