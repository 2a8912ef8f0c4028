"""pass@k and majority@k from n samples: unbiased, in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import comb
from typing import Any

import numpy as np

from utils.statistics.accuracy_tests import bootstrap_ratios, wilson_interval
from utils.statistics.clusters import cluster_bootstrap, share


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Probability that k of n samples, drawn without replacement, hold a right one: 1 - C(n-c, k) / C(n, k).

    The unbiased estimator of Chen et al. 2021 (arXiv 2107.03374, equation 1).
    """
    return 1.0 - comb(n - correct, k) / comb(n, k)


def majority_at_k(right: int, wrong: Sequence[int], unreadable: int, k: int) -> float:
    """Probability that the vote of k samples, drawn without replacement, is right; 1 <= k <= all of them.

    Args:
        right: samples with the right answer.
        wrong: samples with each wrong answer.
        unreadable: samples without an answer, which have no vote. Where all k are such, the vote is wrong.

    If the right answer ties with t others for the most votes, it counts 1 / (1 + t).
    """
    return _majorities(right, tuple(sorted(wrong)), unreadable)[k - 1]


@lru_cache(maxsize=4096)
def _majorities(right: int, wrong: tuple[int, ...], unreadable: int) -> tuple[float, ...]:
    """``majority_at_k`` for k = 1 … n, by counting the draws in which the right answer has v votes.

    The others' votes are counted one answer at a time: ways[t][m] is in how many ways m samples can be drawn
    such that t answers have v votes and none has more. Whole numbers throughout, so that nothing is rounded
    before the last division.
    """
    n = right + sum(wrong) + unreadable
    won = [0.0] * n
    for v in range(1, right + 1):
        room = n - v
        ways = [[comb(unreadable, m) for m in range(room + 1)]]
        for size in wrong:
            ties = len(ways) + (size >= v and len(ways) * v <= room)
            more = [[0] * (room + 1) for _ in range(ties)]
            for t, row in enumerate(ways):
                for m, count in enumerate(row):
                    if not count:
                        continue
                    for u in range(min(size, v - 1, room - m) + 1):
                        more[t][m + u] += count * comb(size, u)
                    if size >= v and m + v <= room:
                        more[t + 1][m + v] += count * comb(size, v)
            ways = more
        for t, row in enumerate(ways):
            for m, count in enumerate(row):
                if count:
                    won[v + m - 1] += comb(right, v) * count / comb(n, v + m) / (1 + t)
    return tuple(won)


def sample_ks(num_samples: int) -> list[int]:
    """The k that are reported: 1, 2, 4 … up to the number of samples, and that number."""
    return sorted({1 << power for power in range(num_samples.bit_length())} | {num_samples})


def mean_shares(
    table: np.ndarray, rng: np.random.Generator, clusters: np.ndarray | None = None
) -> list[dict[str, Any]]:
    """Means over items of the columns of shares, float [items, M], as {"value", "ci95", "n"}.

    The interval is the percentile one of a bootstrap over items, and Wilson's where all items agree: a
    bootstrap sees nothing there. With the clusters of the items it is `cluster_bootstrap`'s, and `share`'s.
    """
    if clusters is not None:
        return [_clustered_mean(column, rng, clusters) for column in table.T]
    n = len(table)
    ends = bootstrap_ratios(table, np.ones(n), rng) if n > 1 else [(0.0, 0.0)] * table.shape[1]
    means = []
    for column, (low, high) in zip(table.T, ends, strict=True):
        if np.ptp(column) == 0 or n == 1:
            low, high = wilson_interval(round(column.mean() * n), n)
        means.append({"value": float(column.mean()), "ci95": [low, high], "n": n})
    return means


def _clustered_mean(column: np.ndarray, rng: np.random.Generator, clusters: np.ndarray) -> dict[str, Any]:
    mean = share(column.tolist(), clusters)
    if np.ptp(column) and mean["clusters"] > 1:
        low, high = cluster_bootstrap(column.tolist(), clusters, rng)
        mean["ci95"] = [max(0.0, low), min(1.0, high)]
    return mean
