"""Policies compared item by item: what stage 10 found of each, and the tests of every pair."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from utils.comparison.answer_files import read_breakdown
from utils.comparison.estimates import Estimate, estimate_of
from utils.frame.files import UserError, derive_seed, read_json
from utils.frame.stage import no_bar
from utils.statistics.accuracy_tests import bootstrap_difference, holm, mcnemar, minimum_detectable_difference
from utils.statistics.clusters import cluster_bootstrap, cluster_numbers, design_effect
from utils.statistics.seed_tests import sign_flip_test

ALPHA = 0.05
POWER = 0.8


@dataclass(frozen=True, eq=False)
class PolicyResult:
    """What stage 10 found for one policy.

    Attributes:
        items: by id in file order, the columns ``correct`` (bool), ``level`` (int or None), ``gold`` and
            ``report`` ("" where the evaluation names none).
        metrics: metrics.json.
    """

    name: str
    items: pd.DataFrame
    metrics: dict[str, Any]

    @property
    def accuracy(self) -> Estimate:
        """The share of items answered correctly, as stage 10 states it."""
        return estimate_of(self.metrics["accuracy"])

    @property
    def clusters(self) -> np.ndarray | None:
        """The number of each item's report; None where no two items share one."""
        return cluster_numbers(self.items["report"])


@dataclass(frozen=True)
class Pair:
    """Policy B against policy A on the items that both answered.

    Attributes:
        difference: accuracy of B minus accuracy of A on the shared items.
        ci95: interval of the difference: of a bootstrap that draws reports with all their items where items
            share one, else of ``plain95``.
        fixed, broken: ids that B gains and loses against A.
        p_value, p_holm: of the exact test that exchanges whole reports where items share one, else exact
            McNemar; raw, and corrected over all pairs and looks of the comparison.
        clusters: how many reports the items come from, None where each is on its own.
        plain95, p_plain: paired bootstrap of items and exact McNemar, for which all items are independent.
        detectable: smallest true difference that the test finds with 80 % power at the level of Holm's
            strictest step (0.05 / number of pairs and looks), None where no difference could be significant.
            Items that share reports count as the smaller number of independent ones that tell as much.
    """

    a: str
    b: str
    n: int
    accuracy_a: float
    accuracy_b: float
    ci95: tuple[float, float]
    p_value: float
    detectable: float | None
    plain95: tuple[float, float]
    p_plain: float
    clusters: int | None = None
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
    items = rows[["correct", "level", "gold", "report"]].astype({"correct": bool})
    return PolicyResult(name, items, read_json(metrics_path))


def side_by_side(a: PolicyResult, b: PolicyResult, named: str) -> pd.DataFrame:
    """The items that both were given in the order of A's, their columns ending in ``_a`` and ``_b``.

    ``named`` says which two these are. Raises UserError where data set, split or an item's gold differ.
    """
    for key in ("dataset", "split"):
        # Results of others may not say what they are of.
        if a.metrics.get(key) != b.metrics.get(key) and a.metrics.get(key) and b.metrics.get(key):
            raise UserError(
                f"cannot compare {named}: {key} is {a.metrics.get(key)!r} for one and "
                f"{b.metrics.get(key)!r} for the other; evaluate both on the same items"
            )
    both = a.items.add_suffix("_a").join(b.items.add_suffix("_b"), how="inner")
    stated = (both["gold_a"] != "") & (both["gold_b"] != "")
    for item, row in both[stated & (both["gold_a"] != both["gold_b"])].iterrows():
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
    test, differences = mcnemar(right_a, right_b), right_b.astype(int) - right_a
    discordance = (test.fixed + test.broken) / len(both)
    rng = np.random.default_rng(derive_seed(seed, "bootstrap", a.name, b.name))
    plain95 = ci95 = bootstrap_difference(right_a, right_b, rng)
    p_value, effective = test.p_value, len(both)
    # One of the two may be an older evaluation, which names no reports.
    clusters = cluster_numbers(both["report_a"].where(both["report_a"] != "", both["report_b"]))
    if clusters is not None:
        ci95 = cluster_bootstrap(differences, clusters, rng)
        p_value = sign_flip_test(differences, clusters)
        effective = int(len(both) / design_effect(differences, clusters))
    return Pair(
        a=a.name,
        b=b.name,
        n=len(both),
        accuracy_a=float(right_a.mean()),
        accuracy_b=float(right_b.mean()),
        ci95=ci95,
        p_value=p_value,
        detectable=minimum_detectable_difference(effective, discordance, alpha, POWER),
        plain95=plain95,
        p_plain=test.p_value,
        clusters=None if clusters is None else int(clusters.max()) + 1,
        fixed=both.index[right_b & ~right_a].tolist(),
        broken=both.index[right_a & ~right_b].tolist(),
    )


def compare_all(
    results: Sequence[PolicyResult], seed: int, looks: int = 1, progress: Callable[..., Iterable] = no_bar
) -> list[Pair]:
    """Every pair of policies, in order, corrected over all of them and over ``looks`` (``corrected``).

    ``progress``: as `StageContext.progress`.
    """
    couples = list(combinations(results, 2))
    level = ALPHA / max(1, len(couples)) / looks
    pairs = [compare_pair(a, b, seed, level) for a, b in progress(couples, description="comparing")]
    p_values = corrected([pair.p_value for pair in pairs], looks)
    return [replace(pair, p_holm=p) for pair, p in zip(pairs, p_values, strict=True)]


def corrected(p_values: Sequence[float], looks: int) -> list[float]:
    """Holm's correction over pairs, and Bonferroni's over the looks at results that are still coming in."""
    return [min(1.0, looks * p) for p in holm(p_values)]
