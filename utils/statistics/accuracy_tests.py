"""Uncertainty of accuracies and of their differences on the same items.

Two policies answer the same questions, so every test here is paired: an unpaired test on paired items
throws away the agreement between them and with it most of the power. Items that share a source are the
matter of ``clusters``, policies that were trained from several seeds that of ``seed_tests``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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


def fraction(values: Sequence[float]) -> dict[str, Any]:
    """A mean of values in [0, 1] in the form of ``rate``, each value a share of one item.

    The interval is Wilson's for that mean and n: no variable between 0 and 1 varies more than a yes or no of
    the same mean, so it errs to the safe side, and of values that are all 0 or 1 it is ``rate``'s. Where all
    values are alike a bootstrap would see no uncertainty at all.

    Raises:
        ValueError: without values, or where one is outside [0, 1] or not a number.
    """
    v = np.asarray(values, dtype=float)
    if not len(v) or not ((v >= 0) & (v <= 1)).all():
        raise ValueError("need at least one value, each in [0, 1]")
    mean, n = float(v.mean()), len(v)
    return {"value": mean, "ci95": list(wilson_ends(mean, n, float(stats.norm.ppf(0.975)))), "n": n}


def wilson_ends(mean: float, n: float, z: float) -> tuple[float, float]:
    """Wilson's interval of a mean in [0, 1] for any number of items and any quantile."""
    centre = (mean + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * float(np.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n)))
    # At 0 and 1 an end is there exactly, up to rounding.
    return max(0.0, min(mean, centre - half)), min(1.0, max(mean, centre + half))


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


def t_interval(values: np.ndarray) -> tuple[float, float]:
    """The 95 % t interval of the mean of n values, n at least 2."""
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def bootstrap_ratios(
    sums: np.ndarray,
    weights: np.ndarray,
    rng: np.random.Generator,
    resamples: int = 10_000,
    tail: float = 0.025,
) -> list[tuple[float, float]]:
    """Percentile intervals of sum(sums) / sum(weights), resampling items with both of theirs together.

    Args:
        sums: [items, M], e.g. sums over an item's tokens; one draw of items serves all M columns.
        weights: [items], at least 0 and not all 0, e.g. its number of tokens.
        tail: what is cut off at either end.
    """
    draws, items = [], len(weights)
    batch = max(1, 2_000_000 // items)
    for start in range(0, resamples, batch):
        drawn = draw_counts(rng, min(batch, resamples - start), items)
        # A draw of items without weight says nothing; it is 0/0 there and is left out of the percentiles.
        with np.errstate(invalid="ignore"):
            draws.append((drawn @ sums) / (drawn @ weights)[:, None])
    low, high = np.nanquantile(np.concatenate(draws), [tail, 1 - tail], axis=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))


def ratios(sums: np.ndarray, weights: np.ndarray, rng: np.random.Generator) -> list[dict[str, object]]:
    """sum(sums) / sum(weights) of every column of [items, M] in the form of ``rate``.

    The interval is that of ``bootstrap_ratios``, and null for a single item.
    """
    ends = bootstrap_ratios(sums, weights, rng) if len(sums) > 1 else [None] * sums.shape[1]
    return [
        {"value": float(value), "ci95": ci95 and list(ci95), "n": len(sums)}
        for value, ci95 in zip(sums.sum(0) / weights.sum(), ends, strict=True)
    ]


def percentiles(draws: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Percentile interval of resampled values [resamples]."""
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def draw_counts(rng: np.random.Generator, rows: int, size: int) -> np.ndarray:
    """How often each of ``size`` things comes up in ``size`` draws with replacement: float64 [rows, size]."""
    drawn = rng.integers(0, size, (rows, size)) + size * np.arange(rows)[:, None]
    return np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size).astype(float)


def _paired(a: Sequence, b: Sequence, dtype: type = bool) -> tuple[np.ndarray, np.ndarray]:
    first: np.ndarray = np.asarray(a, dtype=dtype)
    second: np.ndarray = np.asarray(b, dtype=dtype)
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise ValueError(f"need two non-empty lists over the same items, got {first.shape}, {second.shape}")
    return first, second
