"""Ranking and correlation under resampling of prompts: the arithmetic of the reward audit.

Candidates of one prompt are not independent, so the prompt is the sampling unit: a bootstrap draws prompts
with replacement, which gives every candidate the weight 0, 1, 2 … of its prompt. Each statistic here takes
many such weightings at once and gives one value for each.

Shapes: M candidates of P prompts, R weightings. Arrays are float64 unless said otherwise. Weights are [M, R]:
sorting candidates then moves whole rows.
"""

import numpy as np

# Weights held at a time: so few (1 MB) that the passes over them stay in the processor's cache.
_BLOCK = 1 << 17


def weighted_auroc(scores: np.ndarray, right: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Probability that a right candidate scores above a wrong one, ties counted half.

    The Mann-Whitney form of the area under the ROC curve (Hanley and McNeil 1982), over all pairs of a right
    and a wrong candidate, of whichever prompts.

    Args:
        scores: [M].
        right: [M] bool.
        weights: [M, R], at least 0.

    Returns:
        [R], each in [0, 1]; NaN where only right or only wrong candidates have weight.
    """
    order, starts = _ties(scores)
    weights, right = weights[order], right[order][:, None]
    positive = np.add.reduceat(weights * right, starts, axis=0)
    negative = np.add.reduceat(weights * ~right, starts, axis=0)
    below = np.cumsum(negative, axis=0) - negative / 2
    with np.errstate(invalid="ignore"):
        return np.einsum("kr,kr->r", positive, below) / (positive.sum(axis=0) * negative.sum(axis=0))


def weighted_spearman(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation of x and y, both [M]; ties get their mean rank (Spearman 1904).

    Returns:
        [R], each in [-1, 1]; NaN where x or y has a single value among the candidates with weight.
    """
    order, starts = _ties(x)
    _, group = np.unique(y, return_inverse=True)
    y_order, y_starts = _ties(y)
    y_at = np.add.reduceat(weights[y_order], y_starts, axis=0)
    weights = weights[order]
    x_at = np.add.reduceat(weights, starts, axis=0)
    # The mean of ranks taken at the middle of each tie is half the weight, whatever the ties.
    half = x_at.sum(axis=0) / 2
    x_rank, y_rank = (np.cumsum(at, axis=0) - at / 2 - half for at in (x_at, y_at))
    together = np.add.reduceat(weights * y_rank[group[order]], starts, axis=0)
    spread = np.sqrt((x_at * x_rank**2).sum(axis=0) * (y_at * y_rank**2).sum(axis=0))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (together * x_rank).sum(axis=0) / np.where(spread > 0, spread, np.nan)


def draw_prompts(count: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """How often each of ``count`` prompts is drawn in each bootstrap sample, [P, R] int."""
    return rng.multinomial(count, np.full(count, 1 / count), size=resamples).T.copy()


def over_resamples(statistic, draws: np.ndarray, prompt: np.ndarray) -> np.ndarray:
    """``statistic(weights [M, R']) -> [R']`` over all drawn samples, in blocks of bounded memory; [R]."""
    block = max(1, _BLOCK // len(prompt))
    parts = [
        statistic(draws[prompt, start : start + block].astype(float))
        for start in range(0, draws.shape[1], block)
    ]
    return np.concatenate(parts)


def percentile_interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval (Efron 1979) of a statistic's values over resamples.

    Resamples in which the statistic does not exist (NaN) are left out.
    """
    tail = 50 * (1 - confidence)
    low, high = np.nanpercentile(values, [tail, 100 - tail])
    return float(low), float(high)


def all_alike_bound(units: int, confidence: float = 0.95) -> float:
    """Smallest mean of a variable in [0, 1] under which ``units`` independent values are all 1 with at least
    probability (1 - confidence) / 2.

    P(value = 1) <= mean, hence P(all are 1) <= mean ** units (Clopper and Pearson 1934, at the boundary). A
    bootstrap of values that are all alike has no width and would claim certainty from any number of them.
    """
    return ((1 - confidence) / 2) ** (1 / units)


def _ties(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sorting order, and where in it each distinct value starts."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    return order, np.r_[0, np.flatnonzero(ordered[1:] != ordered[:-1]) + 1]
