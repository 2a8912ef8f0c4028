"""Tests of policies that were trained from several seeds, the seeds crossed with the items: every seed's
policy answers every item. Items that share a source, such as a report, are given with their ``clusters``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from utils.statistics.accuracy_tests import draw_counts
from utils.statistics.clusters import cluster_sizes, cluster_sums


@dataclass(frozen=True)
class CrossedTest:
    """Whether a mean difference differs from zero where both seeds and items are samples.

    Attributes:
        difference: mean over seeds and items.
        ci95: its t interval.
        p_value: two-sided; 1.0 where nothing differs, 0.0 where every difference is the same.
        df: degrees of freedom (Hillis), at least seeds - 1; infinite where the seeds' means are all equal.
        error: standard error of the difference.
    """

    difference: float
    ci95: tuple[float, float]
    p_value: float
    df: float
    error: float

    def detectable(self, alpha: float = 0.05, power: float = 0.8) -> float | None:
        """Smallest true difference that a t test with this error and df finds at level alpha with this power.

        From the noncentral t distribution, taking the estimated error for the true one. None where no spread
        was seen to judge by, or where even a difference of 1 would be too small.
        """
        if not self.error:
            return None
        critical = stats.t.isf(alpha / 2, self.df)

        def excess(shift: float) -> float:
            # What is rejected on the wrong side adds nothing that counts at any power worth asking for.
            t = stats.norm(shift) if np.isinf(self.df) else stats.nct(self.df, shift)
            return t.sf(critical) - power

        found = self.error * float(optimize.brentq(excess, 0.0, 10 * critical))
        return found if found <= 1 else None


def crossed_test(differences: Sequence[Sequence[int]], clusters: np.ndarray | None = None) -> CrossedTest:
    """t test of a mean over seeds and items that were crossed: every seed answered every item.

    The variance of the mean is estimated from the mean squares of the two-way table without replication,
    (MS_seeds + max(MS_items - MS_rest, 0)) / (seeds * items): what a seed does to all items and what an item
    does to all seeds are no averages over both. Its degrees of freedom are those of Hillis (2007, Statistics
    in Medicine 26:596-619), made for the same layout (few readers, many cases): seeds - 1 where the seeds'
    spread dominates, many where the items' does. In the variance MS_seeds counts for no less than MS_rest,
    so that few seeds which agree by luck make nothing surer than the items alone would.

    Where items share clusters, the clusters take the items' place: a cell is what a seed's differences in a
    cluster sum to beyond the mean's share of them, which is how a mean over clusters of unequal size varies.

    Args:
        differences: [seeds, items] whole numbers, e.g. correct of B minus correct of A; both sides >= 2.
        clusters: [items], the number of each item's cluster; None: independent items. One cluster says
            nothing, and the interval is all there is.
    """
    d = _table(differences)
    mean, unit = int(d.sum()) / d.size, 1.0
    if clusters is not None:
        d, unit = _by_cluster(d, clusters)
        if d.shape[1] == 1:  # nothing shows how another cluster would be answered
            return CrossedTest(mean, (-1.0, 1.0), 1.0, 0.0, 0.0)
    seeds, items = d.shape
    # Sums of squares times seeds * items, in whole numbers: no spread is exactly none.
    total = int(d.sum())
    by_seed = seeds * int((d.sum(1) ** 2).sum()) - total**2
    by_item = items * int((d.sum(0) ** 2).sum()) - total**2
    rest = seeds * items * int((d**2).sum()) - total**2 - by_seed - by_item
    cells = seeds * items
    ms_seed = unit**2 * by_seed / cells / (seeds - 1)
    ms_item = unit**2 * by_item / cells / (items - 1)
    ms_rest = unit**2 * rest / cells / ((seeds - 1) * (items - 1))
    spread = max(ms_seed, ms_rest) + max(ms_item - ms_rest, 0.0)
    error = float(np.sqrt(spread / cells))
    df = (seeds - 1) * (spread / ms_seed) ** 2 if ms_seed else np.inf
    if not spread:
        return CrossedTest(mean, (mean, mean), 0.0 if mean else 1.0, df, 0.0)
    half = float(stats.t.ppf(0.975, df)) * error
    p_value = 2 * float(stats.t.sf(abs(mean) / error, df))
    return CrossedTest(mean, (mean - half, mean + half), p_value, float(df), error)


def sign_flip_test(differences: Sequence[Sequence[int]], clusters: np.ndarray | None = None) -> float:
    """Two-sided p of the paired permutation test over items, exact: no resampling and no random numbers.

    Under the null hypothesis the two policies' answers to an item can be exchanged, in all seeds at once, so
    that an item's sum of differences is as likely positive as negative. The sums are whole numbers: the
    distribution of their total over all 2^items flips is a convolution of binomials. With one seed this is
    the exact McNemar test. The seeds are taken as they are: nothing is said about other seeds.

    Where items share clusters, whole clusters are flipped: only the clusters need be independent. With one
    seed this is the exact form of the McNemar test for clustered pairs (Durkalski et al. 2003, Statistics in
    Medicine 22:2417-2428).

    Args:
        differences: [seeds, items] whole numbers, e.g. correct of B minus correct of A.
        clusters: [items], the number of each item's cluster; None: independent items.
    """
    d = np.atleast_2d(np.asarray(differences, dtype=np.int64))
    if clusters is not None:
        d = cluster_sums(d, clusters)
    sizes = np.bincount(np.abs(d.sum(0)))
    observed = abs(int(d.sum()))
    # Of the items whose sum is +-size, Binomial(count, 1/2) are positive; their share of the total's
    # positive part is that number times size.
    flips = np.ones(1)
    for size, count in enumerate(sizes):
        if size and count:
            steps = np.zeros(size * count + 1)
            steps[::size] = stats.binom.pmf(np.arange(count + 1), count, 0.5)
            flips = np.convolve(flips, steps)
    most = len(flips) - 1
    return min(1.0, float(flips[np.abs(2 * np.arange(most + 1) - most) >= observed].sum()))


@dataclass(frozen=True)
class SeedTest:
    """Paired t test over seeds alone, the items taken as they are; df is the number of seeds minus one."""

    ci95: tuple[float, float]
    p_value: float


def seed_test(differences: Sequence[Sequence[int]]) -> SeedTest | None:
    """Paired t test on the seeds' mean differences; None where they are all equal and no spread is seen.

    Args:
        differences: [seeds, items] whole numbers, e.g. correct of B minus correct of A; both sides >= 2.
    """
    d = _table(differences)
    if not np.ptp(d.sum(1)):
        return None
    result = stats.ttest_1samp(d.sum(1) / d.shape[1], 0.0)
    low, high = result.confidence_interval(0.95)
    return SeedTest((float(low), float(high)), float(result.pvalue))


def hierarchical_bootstrap(
    correct: Sequence[Sequence[Sequence[bool]]],
    rng: np.random.Generator,
    resamples: int = 10_000,
    clusters: np.ndarray | None = None,
) -> np.ndarray:
    """Resampled mean accuracies: seeds drawn with replacement, and items with replacement.

    One draw of seeds and items serves all policies, so that differences of columns are paired. All seeds of
    a draw get the same items, because they answered the same: fresh items for each seed would take three
    answers to one question for three questions (Owen 2007, Annals of Applied Statistics 1:386-411).

    Args:
        correct: [policies, seeds, items].
        clusters: [items], the number of each item's cluster: clusters are drawn then, with all their items.

    Returns:
        float64 [resamples, policies]; a policy's draws do not depend on which others are there.
    """
    c = np.asarray(correct, dtype=float)
    sizes = np.ones(c.shape[2])
    if clusters is not None:
        c, sizes = cluster_sums(c, clusters), cluster_sizes(clusters).astype(float)
    policies, seeds, items = c.shape
    draws, batch = [], max(1, 2_000_000 // items)
    for start in range(0, resamples, batch):
        rows = min(batch, resamples - start)
        drawn = draw_counts(rng, rows, seeds), draw_counts(rng, rows, items)
        right = (c.reshape(policies * seeds, items) @ drawn[1].T).reshape(policies, seeds, rows)
        asked = (drawn[1] @ sizes)[:, None]
        draws.append(np.einsum("psr,rs->rp", right, drawn[0]) / (seeds * asked))
    return np.concatenate(draws)


def _table(differences: Sequence[Sequence[int]]) -> np.ndarray:
    d = np.asarray(differences, dtype=np.int64)
    if d.ndim != 2 or min(d.shape) < 2:
        raise ValueError(f"need differences of at least 2 seeds and 2 items, got {d.shape}")
    return d


def _by_cluster(d: np.ndarray, clusters: np.ndarray) -> tuple[np.ndarray, float]:
    """Cells [seeds, clusters] of ``crossed_test`` in units that make them whole numbers, and the unit.

    A cell is (sum - mean * size) * clusters / items; singletons leave the differences less their mean.
    Python's own whole numbers, because squares of these outgrow 64 bits in a large table.
    """
    seeds, n = d.shape
    sizes = cluster_sizes(clusters)
    cells = seeds * n * cluster_sums(d, clusters) - int(d.sum()) * sizes
    return cells.astype(object), len(sizes) / (seeds * n * n)
