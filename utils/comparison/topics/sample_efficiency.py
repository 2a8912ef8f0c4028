"""How many sampled completions a method takes to reach a stated validation accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from utils.comparison.topics.curves import Curve, Point
from utils.documents.text import markdown_table, percent
from utils.statistics.accuracy_tests import t_interval

ROUNDING = 1e-9  # a share that misses the target by so little is at it

COLUMNS = ["target_val_accuracy", "completions_to_target", "completions_to_target_low"]
COLUMNS += ["completions_to_target_high", "seeds_reaching_target"]


@dataclass(frozen=True)
class Reached:
    """Completions at which one method first reaches the target.

    Attributes:
        by_run: of every run; None where it never does.
        budget: completions of its last validation, per run: what None is larger than.
        mean: geometric mean over the runs, None unless all reach it after the start.
        ci95: t interval of that mean, on logarithms; None with one run, or where runs do not differ.
    """

    by_run: list[float | None]
    budget: list[int]
    mean: float | None
    ci95: tuple[float, float] | None

    @property
    def reaching(self) -> int:
        """Runs that reach the target."""
        return sum(value is not None for value in self.by_run)


@dataclass(frozen=True)
class Efficiency:
    """Which accuracy is to be reached, and by which methods after how many completions.

    Attributes:
        fraction: of ``best``, giving ``target``.
        best, best_policy: the highest mean validation accuracy of a compared method, and whose it is.
        reached: policy -> when, for the methods that sample completions.
    """

    fraction: float
    best: float
    best_policy: str
    reached: dict[str, Reached]

    @property
    def target(self) -> float:
        """The validation accuracy to be reached."""
        return self.fraction * self.best


def first_reached(points: Sequence[Point], target: float) -> float | None:
    """Sampled completions at which the accuracy first reaches the target, linear between validations.

    None where it never does; the first validation's count where it does so there already.
    """
    before: Point | None = None
    for point in points:
        if point.val_accuracy >= target - ROUNDING:
            if before is None:
                return float(point.sampled_completions)
            share = min(1.0, (target - before.val_accuracy) / (point.val_accuracy - before.val_accuracy))
            return before.sampled_completions + share * (
                point.sampled_completions - before.sampled_completions
            )
        before = point
    return None


def geometric_mean(values: Sequence[float]) -> tuple[float, tuple[float, float] | None]:
    """Geometric mean of values above 0, and its t interval on logarithms (None where they do not differ)."""
    logs = np.log(values)
    if len(logs) < 2 or not np.ptp(logs):
        return float(np.exp(logs.mean())), None
    low, high = np.exp(t_interval(logs))
    return float(np.exp(logs.mean())), (float(low), float(high))


def sample_efficiency(curves: Sequence[Curve], fraction: float) -> Efficiency | None:
    """When each method that samples reaches ``fraction`` of the best mean accuracy; None without any.

    The best is taken over all methods with completions, and over the validations that all of a method's runs
    have; the mean is over runs.
    """
    sampling = [curve for curve in curves if curve.kind != "level"]
    means = [
        (float(np.mean([point.val_accuracy for point in points])), curve.policy)
        for curve in sampling
        for points in curve.shared()
    ]
    if not means:
        return None
    best, policy = max(means, key=lambda pair: pair[0])
    reached = {}
    for curve in sampling:
        by_run = [first_reached(points, fraction * best) for points in curve.by_run]
        mean, ci95 = geometric_mean(by_run) if all(by_run) else (None, None)
        reached[curve.policy] = Reached(
            by_run, [points[-1].sampled_completions for points in curve.by_run], mean, ci95
        )
    return Efficiency(fraction, best, policy, reached)


def with_efficiency(
    rows: Sequence[dict[str, Any]], columns: Sequence[str], efficiency: Efficiency | None
) -> tuple[list, list]:
    """Rows and columns of summary.csv with the target and the completions to it, blank where not reached."""
    if efficiency is None:
        return list(rows), list(columns)
    filled = []
    for row in rows:
        of_policy = dict.fromkeys(COLUMNS, "")
        if reached := efficiency.reached.get(row["policy"]):
            low, high = reached.ci95 or ("", "")
            mean = "" if reached.mean is None else reached.mean
            values = (efficiency.target, mean, low, high, f"{reached.reaching} of {len(reached.by_run)}")
            of_policy = dict(zip(COLUMNS, values, strict=True))
        filled.append(row | of_policy)
    return filled, [*columns, *COLUMNS]


def cell(reached: Reached | None) -> str:
    """Completions to the target for a table: mean and interval, or what is known of them."""
    if reached is None:
        return "–"
    if reached.mean is not None:
        ends = f" ({reached.ci95[0]:,.0f}–{reached.ci95[1]:,.0f})" if reached.ci95 else ""
        return f"{reached.mean:,.0f}{ends}"
    if len(reached.by_run) == 1 or not reached.reaching:
        return _single(reached.by_run[0], max(reached.budget))
    return f"{reached.reaching} of {len(reached.by_run)} seeds"


def _single(value: float | None, budget: int) -> str:
    if value is None:
        return f"> {budget:,}"
    return f"{value:,.0f}" if value else "at the start"


def efficiency_section(efficiency: Efficiency | None) -> str:
    """The report's section, "" where no method samples completions."""
    if efficiency is None:
        return ""
    several = any(len(reached.by_run) > 1 for reached in efficiency.reached.values())
    rows = []
    for name, reached in efficiency.reached.items():
        row = [name, cell(reached)]
        if several:
            row.append(
                " / ".join(_single(*pair) for pair in zip(reached.by_run, reached.budget, strict=True))
            )
        rows.append(row)
    heads = ["method", "completions to the target" + (" (95 % interval)" if several else "")]
    note = (
        f"Sampled completions until the validation accuracy first reaches {percent(efficiency.target)}: "
        f"{efficiency.fraction:g} of {percent(efficiency.best)}, the best mean of a compared method "
        f'({efficiency.best_policy}). Linear between validations. "> n": not reached with the n completions '
        "sampled, so that only a lower bound is known (censored)."
    )
    if several:
        note += (
            " Geometric mean over the seeds with a t interval on logarithms, where all seeds reach the "
            "target after the start."
        )
    table = markdown_table([*heads, "each seed"] if several else heads, rows)
    return f"## Sample efficiency\n\n{note}\n\n{table}"
