"""The curves of a training log: levels and trends that noise does not decide."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

LAST = 10  # logged values that a level is the median of
STRETCH = 20  # logged values that "for long" means
P_TREND = 0.001  # two-sided, below which one curve has a trend
P_BOTH = 0.01  # where two curves have to move, in opposite directions
# Curves are averaged down to so many points: neighbouring steps resemble each other, and would be taken for
# independent evidence of a trend.
POINTS = 20


@dataclass(frozen=True)
class LogCurve:
    """The finite values of one log key: ``steps`` and ``values``, float64 [n]."""

    steps: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, part: slice) -> LogCurve:
        return LogCurve(self.steps[part], self.values[part])

    @property
    def first(self) -> float:
        """Median of the first values."""
        return float(np.median(self.values[:LAST]))

    @property
    def last(self) -> float:
        """Median of the last values."""
        return float(np.median(self.values[-LAST:]))

    def over_median_before(self) -> np.ndarray:
        """Every value after the first `STRETCH`, divided by the median of the `STRETCH` before it."""
        before = np.lib.stride_tricks.sliding_window_view(self.values, STRETCH)[:-1]
        return self.values[STRETCH:] / np.maximum(np.median(before, axis=1), 1e-12)

    def trend(self) -> Trend:
        """The trend over all steps; none for fewer than five values or values that are all equal."""
        if len(self) < 5 or np.ptp(self.values) == 0:
            return Trend(0.0, 1.0)
        blocks = np.array_split(np.arange(len(self)), min(len(self), POINTS))
        steps = np.array([self.steps[block].mean() for block in blocks])
        values = np.array([self.values[block].mean() for block in blocks])
        later, earlier = np.tril_indices(len(blocks), -1)
        slope = np.median((values[later] - values[earlier]) / (steps[later] - steps[earlier]))
        p_value = stats.kendalltau(steps, values).pvalue
        return Trend(float(slope * np.ptp(self.steps)), float(p_value) if np.isfinite(p_value) else 1.0)


@dataclass(frozen=True)
class Trend:
    """``change``: rise of the median-slope line from first to last step (Theil 1950, Sen 1968). ``p_value``:
    of the two-sided Mann-Kendall test that there is no trend (Kendall's tau against the step)."""

    change: float
    p_value: float

    def rises(self, p: float = P_TREND) -> bool:
        return self.change > 0 and self.p_value < p

    def falls(self, p: float = P_TREND) -> bool:
        return self.change < 0 and self.p_value < p


class History:
    """A training log by key.

    Args:
        rows: as in ``logs/metrics.jsonl`` or a trainer's ``log_history``: ``step`` and any keys.
    """

    def __init__(self, rows: Sequence[dict[str, Any]]):
        self.rows = list(rows)

    def __contains__(self, key: str) -> bool:
        return any(key in row for row in self.rows)

    def curve(self, *keys: str) -> LogCurve:
        """The first of ``keys`` that was ever logged, without values that are not finite numbers."""
        key = next((key for key in keys if key in self), keys[0])
        points = [(row["step"], row[key]) for row in self.rows if is_finite(row.get(key))]
        steps, values = np.array(points, dtype=float).reshape(-1, 2).T
        return LogCurve(steps, values)

    def is_rl(self) -> bool:
        """Whether completions were sampled and rewarded."""
        return "reward" in self


def is_finite(value: Any) -> bool:
    """Whether a logged value is a finite number (TRL logs the mean of nothing but NaN as None)."""
    return isinstance(value, (int, float, np.floating)) and math.isfinite(value)
