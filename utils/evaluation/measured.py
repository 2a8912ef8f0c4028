"""One number of a policy with its interval, and its mean over runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from utils.evaluation.statistics import t_interval


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
