"""One number of a policy with its interval: its mean over runs, in tables and in summary.csv."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from utils.documents.text import interval, percent
from utils.statistics.accuracy_tests import t_interval


@dataclass(frozen=True)
class Measured:
    """One number with its interval (None: a single item or training, or runs that do not differ)."""

    value: float
    ci95: tuple[float, float] | None


def over_runs(numbers: Sequence[Mapping[str, Any]], bounds: tuple[float, float]) -> Measured:
    """The mean over runs of {"value", "ci95"}, with a t interval over them cut to the possible values.

    With one run it is that run's number with its own interval, if it has any.
    """
    if len(numbers) == 1:
        ci95 = numbers[0].get("ci95")
        return Measured(numbers[0]["value"], tuple(ci95) if ci95 else None)
    values = np.array([number["value"] for number in numbers], dtype=float)
    if not np.ptp(values):
        return Measured(float(values[0]), None)
    low, high = np.clip(t_interval(values), *bounds)
    return Measured(float(values.mean()), (float(low), float(high)))


def with_measured(
    rows: Sequence[dict[str, Any]],
    columns: Sequence[str],
    names: Sequence[str],
    of_policy: Callable[[str], Mapping[str, Measured | None]],
) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows and columns of summary.csv with ``names``, each with the ends of its interval beside it.

    ``of_policy`` gives what was measured of a row's policy by name; the rest is blank.
    """
    more = [f"{name}{end}" for name in names for end in ("", "_low", "_high")]
    filled = []
    for row in rows:
        cells = dict.fromkeys(more, "")
        for name, measured in of_policy(row["policy"]).items():
            if measured:
                low, high = measured.ci95 or ("", "")
                cells |= {name: measured.value, f"{name}_low": low, f"{name}_high": high}
        filled.append(row | cells)
    return filled, [*columns, *more]


def percent_cell(measured: Measured | None) -> str:
    """A share with its interval for a table, in per cent."""
    if measured is None:
        return "–"
    return percent(measured.value) + (f" ({interval(measured.ci95)})" if measured.ci95 else "")


def number_cell(measured: Measured | None, to: str = " to ") -> str:
    """A number with its interval for a table; ``to`` stands between the ends."""
    if measured is None:
        return "–"
    ends = f" ({measured.ci95[0]:.3g}{to}{measured.ci95[1]:.3g})" if measured.ci95 else ""
    return f"{measured.value:.3g}{ends}"
