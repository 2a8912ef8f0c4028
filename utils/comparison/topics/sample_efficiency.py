"""How many sampled completions a method takes to reach a stated validation accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from utils.comparison.estimates import Estimate, columns_of
from utils.comparison.topic import Comparison, Topic
from utils.comparison.topics.validation_curves import Curve, Point, curves_of
from utils.documents.document import Number, Paragraph, Section, Table
from utils.documents.text import percent
from utils.statistics.accuracy_tests import t_interval

ROUNDING = 1e-9  # a share that misses the target by so little is at it


class Reached(NamedTuple):
    """Completions at which one method first reaches the target.

    Attributes:
        by_run: of every run; None where it never does.
        budget: completions of its last validation, per run: what None is larger than.
        mean: geometric mean over the runs with a t interval on logarithms; None unless all reach the target
            after the start.
    """

    by_run: list[float | None]
    budget: list[int]
    mean: Estimate | None

    @property
    def reaching(self) -> str:
        """How many runs reach the target."""
        return f"{sum(value is not None for value in self.by_run)} of {len(self.by_run)}"

    def cell(self) -> Number:
        """Completions to the target for a table: mean and interval, or what is known of them."""
        if self.mean:
            ends = "({:,.0f}–{:,.0f})".format(*self.mean.ci95) if self.mean.ci95 else ""
            return Number(f"{self.mean.value:,.0f} {ends}".rstrip(), self.mean.value)
        if len(self.by_run) == 1 or not any(value is not None for value in self.by_run):
            return Number(_single(self.by_run[0], max(self.budget)))
        return Number(f"{self.reaching} seeds")


class Efficiency(NamedTuple):
    """Which accuracy is to be reached, and by which methods after how many completions.

    ``target`` is ``fraction`` of ``best``, the highest mean validation accuracy of a compared method (which
    is ``best_policy``); ``reached`` has the methods that sample completions.
    """

    fraction: float
    best: float
    best_policy: str
    target: float
    reached: dict[str, Reached]


def topic(comparison: Comparison) -> Topic:
    """Completions to the target, a row per method; nothing where no method samples completions."""
    efficiency = efficiency_of(comparison)
    if efficiency is None:
        return Topic()
    several = any(len(reached.by_run) > 1 for reached in efficiency.reached.values())
    heads = ["method", "completions to the target"]
    rows = [[name, reached.cell()] for name, reached in efficiency.reached.items()]
    note = (
        f"Sampled completions until the validation accuracy first reaches {percent(efficiency.target)}: "
        f"{efficiency.fraction:g} of {percent(efficiency.best)}, the best mean of a compared method "
        f'({efficiency.best_policy}). Linear between validations. "> n": not reached with the n completions '
        "sampled, so that only a lower bound is known (censored)."
    )
    if several:
        heads = [heads[0], f"{heads[1]} (95 % interval)", "each seed"]
        for row, reached in zip(rows, efficiency.reached.values(), strict=True):
            row.append(" / ".join(map(_single, reached.by_run, reached.budget)))
        note += (
            " Geometric mean over the seeds with a t interval on logarithms, where all seeds reach the "
            "target after the start."
        )
    columns = {name: _columns(efficiency.target, reached) for name, reached in efficiency.reached.items()}
    return Topic([Section("Sample efficiency", [Paragraph(note), Table(heads, rows)])], columns)


def _single(value: float | None, budget: int) -> str:
    if value is None:
        return f"> {budget:,}"
    return f"{value:,.0f}" if value else "at the start"


def _columns(target: float, reached: Reached) -> dict[str, Any]:
    mean = columns_of({"completions_to_target": reached.mean})
    return {"target_val_accuracy": target, **mean, "seeds_reaching_target": reached.reaching}


def efficiency_of(comparison: Comparison) -> Efficiency | None:
    """``sample_efficiency`` of the compared policies."""
    return sample_efficiency(curves_of(comparison)[0], comparison.efficiency_fraction)


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
        budget = [points[-1].sampled_completions for points in curve.by_run]
        reached[curve.policy] = Reached(by_run, budget, geometric_mean(by_run) if all(by_run) else None)
    return Efficiency(fraction, best, policy, fraction * best, reached)


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
            sampled = point.sampled_completions - before.sampled_completions
            return before.sampled_completions + share * sampled
        before = point
    return None


def geometric_mean(values: Sequence[float]) -> Estimate:
    """Geometric mean of values above 0, and its t interval on logarithms (None where they do not differ)."""
    logs = np.log(values)
    ends = None
    if len(logs) > 1 and np.ptp(logs):
        ends = tuple(np.exp(t_interval(logs)).tolist())
    return Estimate(float(np.exp(logs.mean())), ends)
