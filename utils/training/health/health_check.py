"""What a rule of training health says: its finding, or that it found nothing, or that it had too few rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from typing import Literal

from utils.training.health.log_curves import History, LogCurve


@dataclass(frozen=True)
class HealthFinding:
    """Something unhealthy: ``message`` has the figures and steps, ``remedy`` what to try, with key names."""

    name: str
    severity: Literal["serious", "warning"]
    message: str
    remedy: str


@dataclass(frozen=True)
class Check:
    """The outcome of one rule that applies: the figures it looked at, and what it found (None: healthy).

    A rule that has too few rows has not ``judged``.
    """

    name: str
    figures: str
    finding: HealthFinding | None
    judged: bool = True


Rule = Callable[[History], Iterator[Check]]


def too_few(name: str, curve: LogCurve, needed: int) -> Iterator[Check]:
    """A rule that has fewer logged values than it needs; nothing where its key was never logged."""
    if len(curve):
        yield Check(name, f"{len(curve)} logged, {needed} needed", None, judged=False)


def needs(
    count: int, *keys: str, when: Callable[[History], bool] = lambda log: True
) -> Callable[[Callable[[History, LogCurve], Iterator[Check]]], Rule]:
    """A rule on the curve of the first of ``keys`` that is logged, where it has so many values."""

    def ruled(rule: Callable[[History, LogCurve], Iterator[Check]]) -> Rule:
        @wraps(rule)
        def applied(log: History) -> Iterator[Check]:
            curve = log.curve(*keys)
            if when(log):
                yield from rule(log, curve) if len(curve) >= count else too_few(rule.__name__, curve, count)

        return applied

    return ruled
