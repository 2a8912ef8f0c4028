"""Paired comparison of evaluated policies: summary, tests, and the report that states them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from utils.frame.files import UserError, derive_seed, read_json
from utils.statistics.accuracy_tests import bootstrap_difference, holm, mcnemar, minimum_detectable_difference

ALPHA = 0.05
POWER = 0.8


@dataclass(frozen=True)
class PolicyResult:
    """What stage 10 found for one policy; the lists run over the gold items in file order."""

    name: str
    ids: list[str]
    correct: list[bool]
    levels: list[int | None]
    golds: list[str]
    metrics: dict[str, Any]


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
    """Read one policy's metrics.json and breakdown.csv.

    Raises UserError naming file and line of a breakdown that does not have the documented columns.
    """
    metrics = read_json(metrics_path)
    ids, correct, levels, golds = [], [], [], []
    with open(breakdown_path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        for row in reader:
            where = f"{breakdown_path}:{reader.line_num}"
            try:
                correct.append({"0": False, "1": True}[row["correct"]])
                levels.append(int(row["level"]) if row["level"] else None)
                ids.append(row["id"])
                golds.append(row["gold"])
            except (KeyError, ValueError) as error:
                raise UserError(
                    f"{where}: not a row of breakdown.csv ({error}); run 10_evaluate.py"
                ) from None
    if not ids:
        raise UserError(f"{breakdown_path}: no items; run 10_evaluate.py again")
    return PolicyResult(name, ids, correct, levels, golds, metrics)


def compare_pair(a: PolicyResult, b: PolicyResult, seed: int, alpha: float = ALPHA) -> Pair:
    """Test B against A on the items they share.

    Raises UserError where the two were evaluated on different data: another data set or split, no item in
    common, or the same id with different golds.
    """
    for key in ("dataset", "split"):
        if a.metrics.get(key) != b.metrics.get(key):
            raise UserError(
                f"cannot compare '{a.name}' with '{b.name}': {key} is {a.metrics.get(key)!r} for one and "
                f"{b.metrics.get(key)!r} for the other; evaluate both on the same items"
            )
    row_of = {item: row for row, item in enumerate(b.ids)}
    rows = [(row, row_of[item]) for row, item in enumerate(a.ids) if item in row_of]
    if len(rows) < 2:
        raise UserError(f"cannot compare '{a.name}' with '{b.name}': {len(rows)} items in common, need 2")
    for i, j in rows:
        if a.golds[i] != b.golds[j]:
            raise UserError(
                f"cannot compare '{a.name}' with '{b.name}': item '{a.ids[i]}' has gold {a.golds[i]!r} for "
                f"one and {b.golds[j]!r} for the other; evaluate both on the same data"
            )
    right_a = np.array([a.correct[i] for i, _ in rows])
    right_b = np.array([b.correct[j] for _, j in rows])
    test = mcnemar(right_a, right_b)
    discordance = (test.fixed + test.broken) / len(rows)
    rng = np.random.default_rng(derive_seed(seed, "bootstrap", a.name, b.name))
    return Pair(
        a=a.name,
        b=b.name,
        n=len(rows),
        accuracy_a=float(right_a.mean()),
        accuracy_b=float(right_b.mean()),
        ci95=bootstrap_difference(right_a, right_b, rng),
        p_value=test.p_value,
        detectable=minimum_detectable_difference(len(rows), discordance, alpha, POWER),
        fixed=[a.ids[i] for k, (i, _) in enumerate(rows) if right_b[k] and not right_a[k]],
        broken=[a.ids[i] for k, (i, _) in enumerate(rows) if right_a[k] and not right_b[k]],
    )


def compare_all(results: Sequence[PolicyResult], seed: int) -> list[Pair]:
    """Every pair of policies, in order, with Holm's correction over all of them."""
    couples = list(combinations(results, 2))
    pairs = [compare_pair(a, b, seed, ALPHA / len(couples)) for a, b in couples]
    corrected = holm([pair.p_value for pair in pairs])
    return [Pair(**{**vars(pair), "p_holm": p}) for pair, p in zip(pairs, corrected, strict=True)]


def summary_rows(results: Sequence[PolicyResult]) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows and columns of summary.csv: one row per policy, each rate with the ends of its interval.

    Rates that only some policies have are left blank for the others.
    """
    names = sorted(
        {key for r in results for key, value in r.metrics.items() if _is_rate(value)} - {"accuracy"}
    )
    columns = ["policy", "dataset", "split", "n", "correct", "missing", "mean_tokens"]
    for name in ("accuracy", *names):
        columns += [name, f"{name}_low", f"{name}_high"]
    rows = []
    for result in results:
        metrics = result.metrics
        row = {
            "policy": result.name,
            "dataset": metrics["dataset"],
            "split": metrics["split"],
            "n": len(result.ids),
            "correct": sum(result.correct),
            "missing": metrics["missing"]["count"],
            "mean_tokens": (metrics.get("response_tokens") or {}).get("mean", ""),
        }
        for name in ("accuracy", *names):
            share = metrics.get(name)
            low, high = share["ci95"] if share else ("", "")
            row |= {name: share["value"] if share else "", f"{name}_low": low, f"{name}_high": high}
        rows.append(row)
    return rows, columns


def _is_rate(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {"value", "ci95", "n"}
