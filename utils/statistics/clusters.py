"""Items that are not independent because several share a source, such as the report that they ask about.

A policy that misreads a report misses several of its questions at once, so that 400 questions about 150
reports say less than 400 questions about 400. Here the cluster is the sampling unit: variances are of
clusters' sums, a bootstrap draws clusters, and a permutation test flips whole clusters. Where every item is a
cluster of its own, each function gives what its plain counterpart gives.

``clusters`` is an int array [items] that numbers each item's cluster from 0, as ``cluster_numbers`` makes it.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from scipy import stats

from utils.statistics.accuracy_tests import bootstrap_ratios, fraction, rate, ratios, wilson_ends


def cluster_numbers(names: Sequence[Hashable]) -> np.ndarray | None:
    """The number of each item's cluster, by first appearance; None where no two items share one.

    An item without a name ("" or None) is a cluster of its own.
    """
    keys = [(number,) if name is None or name == "" else name for number, name in enumerate(names)]
    number = {key: place for place, key in enumerate(dict.fromkeys(keys))}
    return np.array([number[key] for key in keys]) if len(number) < len(keys) else None


def cluster_sums(values: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Sums within clusters along the last axis: [..., items] to [..., clusters], of the same dtype.

    The clusters come in the order of their numbers; numbers that no item has are left out.
    """
    order = np.argsort(clusters, kind="stable")
    ordered = clusters[order]
    starts = np.r_[0, np.flatnonzero(ordered[1:] != ordered[:-1]) + 1]
    return np.add.reduceat(np.asarray(values)[..., order], starts, axis=-1)


def cluster_sizes(clusters: np.ndarray) -> np.ndarray:
    """How many items each cluster has, int64 [clusters]."""
    return cluster_sums(np.ones(len(clusters), dtype=np.int64), clusters)


def design_effect(values: Sequence[float], clusters: np.ndarray) -> float:
    """How many times the variance of a mean is what it would be if the items were independent (Kish 1965).

    The ratio of the cluster-robust variance (Liang and Zeger 1986, with G / (G - 1) for G clusters) to the
    plain one, at least 1: that clusters happen to differ less than chance makes nothing surer. Where the
    values are all alike, or there is one cluster, nothing can be estimated and it is the largest possible
    one, of items that always agree within a cluster: sum of squared sizes / items.
    """
    v = np.asarray(values, dtype=float)
    sizes = cluster_sizes(clusters)
    count, n = len(sizes), len(v)
    if count == 1 or not np.ptp(v):
        return float((sizes**2).sum() / n)
    rest = v - v.mean()
    between = (cluster_sums(rest, clusters) ** 2).sum() * count / (count - 1)
    return max(1.0, float(between / ((rest**2).sum() * n / (n - 1))))


def clustered_rate(correct: Sequence[bool], clusters: np.ndarray | None) -> dict[str, object]:
    """``rate`` of the items that are right, or ``share`` of them where they come in clusters."""
    return rate(int(sum(correct)), len(correct)) if clusters is None else share(correct, clusters)


def share(values: Sequence[float], clusters: np.ndarray | None) -> dict[str, Any]:
    """A mean of values in [0, 1] with an interval that counts clusters.

    ``{"value", "ci95", "n", "clusters", "plain95"}``: "ci95" is Wilson's interval at the effective number of
    items, n / ``design_effect``, with the t quantile of clusters - 1 degrees of freedom (the way of survey
    statistics: Korn and Graubard 1998, Survey Methodology 24:193-201, for Wilson's interval); "plain95" takes
    the items as independent. Without clusters it is ``fraction``: "value", "ci95" and "n".
    """
    plain = fraction(values)
    if clusters is None:
        return plain
    count = len(np.unique(clusters))
    effective = len(values) / design_effect(values, clusters)
    z = float(stats.t.ppf(0.975, count - 1)) if count > 1 else float(stats.norm.ppf(0.975))
    low, high = wilson_ends(plain["value"], effective, z)
    return {**plain, "ci95": [low, high], "clusters": count, "plain95": plain["ci95"]}


def cluster_bootstrap(
    differences: Sequence[float],
    clusters: np.ndarray,
    rng: np.random.Generator,
    resamples: int = 10_000,
) -> tuple[float, float]:
    """95 % interval of a mean over items from a bootstrap that draws clusters with all their items.

    A draw's mean is its sum over its number of items. The percentiles are the expanded ones (Hesterberg 2015,
    American Statistician 69:371-386): those of a t interval with clusters - 1 degrees of freedom, because a
    bootstrap of few clusters is too narrow. The one cluster that there may be says nothing: (-1, 1) then,
    for differences of shares.
    """
    sizes = cluster_sizes(clusters)
    if len(sizes) == 1:
        return -1.0, 1.0
    sums = cluster_sums(np.asarray(differences, dtype=float), clusters)
    tail = expanded_tail(len(sizes))
    [ends] = bootstrap_ratios(sums[:, None], sizes.astype(float), rng, resamples, tail=tail)
    return ends


def expanded_tail(count: int) -> float:
    """What the expanded percentile interval of ``count`` clusters, at least two, cuts off at either end."""
    return float(stats.norm.cdf(np.sqrt(count / (count - 1)) * stats.t.ppf(0.025, count - 1)))


def clustered_ratios(
    sums: np.ndarray, weights: np.ndarray, rng: np.random.Generator, clusters: np.ndarray | None
) -> list[dict[str, object]]:
    """``ratios`` of [items, M], whose intervals draw clusters with all their items where there are any.

    The interval is null where all items are of one cluster.
    """
    if clusters is None:
        return ratios(sums, weights, rng)
    of_clusters = cluster_sums(sums.T, clusters).T, cluster_sums(weights, clusters)
    count, columns = len(of_clusters[1]), sums.shape[1]
    several = count > 1
    ends = bootstrap_ratios(*of_clusters, rng, tail=expanded_tail(count)) if several else [None] * columns
    return [
        {"value": float(value), "ci95": each and list(each), "n": len(sums), "clusters": count}
        for value, each in zip(sums.sum(0) / weights.sum(), ends, strict=True)
    ]
