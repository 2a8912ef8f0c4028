"""One number of a policy with its interval, of one run or over several, in tables and in figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from utils.documents.document import Number
from utils.documents.text import interval, percent
from utils.statistics.accuracy_tests import t_interval


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval.

    Attributes:
        ci95: None for a single item or training, and for runs that do not differ.
        n: items that it is a share or mean of, in all runs together, where that is known.
        by_run: the same number of every run.
    """

    value: float
    ci95: tuple[float, float] | None = None
    n: int | None = None
    by_run: tuple[float, ...] = ()

    def whiskers(self, scale: float = 1) -> list[list[float]] | None:
        """The interval's lengths below and above the value, as matplotlib's error bars take them."""
        if self.ci95 is None:
            return None
        low, high = self.ci95
        return [[scale * max(0.0, self.value - low)], [scale * max(0.0, high - self.value)]]


def estimate_of(number: Mapping[str, Any]) -> Estimate:
    """A {"value", "ci95", "n"} of metrics.json, the last two of which may be absent."""
    value, ci95 = number["value"], number.get("ci95")
    return Estimate(value, tuple(ci95) if ci95 else None, number.get("n"), (value,))


def over_runs(numbers: Sequence[Mapping[str, Any]], bounds: tuple[float, float]) -> Estimate:
    """The mean over runs of {"value", "ci95"}, with a t interval over them cut to the possible values.

    With one run it is that run's number with its own interval, if it has any.
    """
    if len(numbers) == 1:
        return estimate_of(numbers[0])
    values = np.array([number["value"] for number in numbers], dtype=float)
    counts = [number.get("n") for number in numbers]
    n = None if None in counts else sum(counts)
    if not np.ptp(values):
        return Estimate(float(values[0]), None, n, tuple(values.tolist()))
    low, high = np.clip(t_interval(values), *bounds)
    return Estimate(float(values.mean()), (float(low), float(high)), n, tuple(values.tolist()))


def over_all_runs(
    each: Sequence[Mapping[Any, Mapping[str, Any]]], bounds: tuple[float, float]
) -> dict[Any, Estimate]:
    """Name -> ``over_runs`` of the numbers of that name, for the names that every run has."""
    shared = [name for name in each[0] if all(name in of_run for of_run in each)]
    return {name: over_runs([of_run[name] for of_run in each], bounds) for name in shared}


def mean_known(values: Sequence[float | None]) -> float | None:
    """The mean over runs, None where any of them does not know the number."""
    return None if None in values else fmean(values)


def columns_of(found: Mapping[str, Estimate | None]) -> dict[str, Any]:
    """Cells of summary.csv: every number with the ends of its interval beside it, blank where not known."""
    cells = {}
    for name, estimate in found.items():
        value, (low, high) = (estimate.value, estimate.ci95 or ("", "")) if estimate else ("", ("", ""))
        cells |= {name: value, f"{name}_low": low, f"{name}_high": high}
    return cells


def percent_cell(estimate: Estimate | None, unknown: str = "–") -> Number:
    """A share with its interval for a table, in per cent."""
    if estimate is None:
        return Number(unknown)
    ends = f" ({interval(estimate.ci95)})" if estimate.ci95 else ""
    return Number(percent(estimate.value) + ends, estimate.value)


def number_cell(estimate: Estimate | None, to: str = " to ") -> Number:
    """A number with its interval for a table; ``to`` stands between the ends."""
    if estimate is None:
        return Number("–")
    ends = f" ({estimate.ci95[0]:.3g}{to}{estimate.ci95[1]:.3g})" if estimate.ci95 else ""
    return Number(f"{estimate.value:.3g}{ends}", estimate.value)
