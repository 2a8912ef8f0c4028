"""Uncertainty of accuracies and of their differences on the same items.

Two policies answer the same questions, so every test here is paired: an unpaired test on paired items
throws away the agreement between them and with it most of the power.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a binomial proportion (Wilson 1927), without continuity correction.

    Raises:
        ValueError: unless 0 <= successes <= n and n >= 1.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"need 0 <= successes <= n and n >= 1, got {successes} of {n}")
    interval = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def rate(successes: int, n: int) -> dict[str, object]:
    """A proportion as it is written to metrics.json: ``{"value", "ci95": [lo, hi], "n"}``."""
    low, high = wilson_interval(successes, n)
    return {"value": successes / n, "ci95": [low, high], "n": n}


@dataclass(frozen=True)
class McNemar:
    """Exact McNemar test of two policies on the same items.

    Attributes:
        fixed: items that A answers wrongly and B correctly.
        broken: items that A answers correctly and B wrongly.
        p_value: two-sided; 1.0 where the policies never disagree.
    """

    fixed: int
    broken: int
    p_value: float


def mcnemar(correct_a: Sequence[bool], correct_b: Sequence[bool]) -> McNemar:
    """Two-sided exact McNemar test (McNemar 1947): sign test on the discordant items.

    Args:
        correct_a, correct_b: whether A and B are right on item i; equal length.
    """
    a, b = _paired(correct_a, correct_b)
    fixed, broken = int((~a & b).sum()), int((a & ~b).sum())
    discordant = fixed + broken
    p_value = float(stats.binomtest(fixed, discordant, 0.5).pvalue) if discordant else 1.0
    return McNemar(fixed, broken, p_value)


def bootstrap_difference(
    scores_a: Sequence[float],
    scores_b: Sequence[float],
    rng: np.random.Generator,
    resamples: int = 10_000,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of mean(B) − mean(A), resampling items (both scores of one together)."""
    a, b = _paired(scores_a, scores_b, dtype=float)
    if len(a) == 1:
        raise ValueError("a bootstrap needs at least two items")
    result = stats.bootstrap(
        (b - a,),
        np.mean,
        n_resamples=resamples,
        batch=max(1, 2_000_000 // len(a)),  # bounds memory to about 32 MB of resampled items
        confidence_level=confidence,
        method="percentile",
        rng=rng,
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values (Holm 1979), in the order given."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    stepped = p[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(stepped))
    return adjusted.tolist()


def mcnemar_power(n: int, discordance: float, difference: float, alpha: float = 0.05) -> float:
    """Power of the exact McNemar test, computed exactly.

    The number of discordant items is Binomial(n, discordance); given it, those that favour the better
    policy are Binomial with probability (discordance + difference) / (2 · discordance).

    Args:
        n: items.
        discordance: share of items on which exactly one policy is right, in (0, 1].
        difference: true difference of the two accuracies, 0 <= difference <= discordance.
        alpha: two-sided level of the test.
    """
    if not 0 < discordance <= 1 or not 0 <= difference <= discordance:
        raise ValueError(f"need 0 <= difference <= discordance <= 1, got {difference} and {discordance}")
    discordant = np.arange(n + 1)
    weight = stats.binom.pmf(discordant, n, discordance)
    keep = weight > 1e-12
    discordant, weight = discordant[keep], weight[keep]
    # Two-sided p of k wins out of d is min(1, 2·P(X <= min(k, d-k))): reject while k <= lower.
    lower = stats.binom.ppf(alpha / 2, discordant, 0.5)
    lower -= 2 * stats.binom.cdf(lower, discordant, 0.5) > alpha
    favour = (discordance + difference) / (2 * discordance)
    reject = stats.binom.cdf(lower, discordant, favour) + stats.binom.sf(
        discordant - lower - 1, discordant, favour
    )
    return float(np.sum(weight * np.minimum(1.0, reject)))


def minimum_detectable_difference(
    n: int, discordance: float, alpha: float = 0.05, power: float = 0.8
) -> float | None:
    """Smallest true difference of two paired accuracies that the exact McNemar test finds with this power.

    The policies are taken to disagree on the observed share of items; a difference larger than that share
    is possible only where they disagree more, and then all disagreement is taken to point one way.

    Returns:
        The difference in (0, 1], or None where n is too small for any difference to be significant.
    """

    def excess(difference: float) -> float:
        return mcnemar_power(n, max(discordance, difference), difference, alpha) - power

    if excess(1.0) < 0:
        return None
    return float(optimize.brentq(excess, 1e-9, 1.0, xtol=1e-6))


def _paired(a: Sequence, b: Sequence, dtype: type = bool) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.asarray(a, dtype=dtype), np.asarray(b, dtype=dtype)
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise ValueError(f"need two non-empty lists over the same items, got {first.shape}, {second.shape}")
    return first, second
