"""Intervals and tests against closed forms, textbook values and simulation under a known truth."""

from functools import lru_cache
from itertools import combinations
from math import comb, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from utils.evaluation.statistics import (
    bootstrap_difference,
    holm,
    mcnemar,
    mcnemar_power,
    minimum_detectable_difference,
    rate,
    wilson_interval,
)


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
@settings(max_examples=50, deadline=None)
def test_wilson_is_the_closed_form(counts):
    k, n = counts
    p, z = k / n, 1.959963984540054
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert wilson_interval(k, n) == pytest.approx((centre - half, centre + half), abs=1e-12)


def test_wilson_textbook_value():
    # Newcombe (1998), Table I: 81 of 263 gives 0.2553 to 0.3662, 0 of 20 gives 0 to 0.1611.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


@pytest.mark.parametrize("k,n", [(1, 0), (3, 2), (-1, 4), (0, 0)])
def test_wilson_refuses_impossible_counts(k, n):
    with pytest.raises(ValueError, match="0 <= successes <= n"):
        wilson_interval(k, n)


@pytest.mark.parametrize("n", [50, 500])
def test_wilson_covers_the_truth_nineteen_times_in_twenty(n):
    # Coverage is exact here: every outcome weighted by its probability, averaged over true proportions.
    covered = [wilson_interval(k, n) for k in range(n + 1)]
    truths = np.linspace(0.05, 0.95, 91)
    low, high = (np.array([ends[side] for ends in covered]) for side in (0, 1))
    mean = np.mean([stats.binom.pmf(np.arange(n + 1), n, p)[(low <= p) & (p <= high)].sum() for p in truths])
    assert mean == pytest.approx(0.95, abs=0.006)


def test_rate_has_the_documented_form():
    assert rate(3, 4)["value"] == 0.75
    assert set(rate(3, 4)) == {"value", "ci95", "n"}
    assert rate(3, 4)["ci95"] == list(wilson_interval(3, 4))


def test_mcnemar_counts_and_tail_sum():
    a = [True] * 15 + [False] * 5 + [True] * 40 + [False] * 40
    b = [False] * 15 + [True] * 5 + [True] * 40 + [False] * 40
    test = mcnemar(a, b)
    assert (test.fixed, test.broken) == (5, 15)
    assert test.p_value == pytest.approx(2 * sum(comb(20, i) for i in range(6)) / 2**20)


def test_mcnemar_without_disagreement():
    assert mcnemar([True, False], [True, False]).p_value == 1.0


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
@settings(max_examples=50, deadline=None)
def test_mcnemar_is_symmetric_and_ignores_agreement(pairs):
    a, b = map(list, zip(*pairs, strict=True))
    there, back = mcnemar(a, b), mcnemar(b, a)
    assert (there.fixed, there.broken, there.p_value) == (back.broken, back.fixed, back.p_value)
    assert mcnemar(a + [True] * 9, b + [True] * 9).p_value == there.p_value


def test_mcnemar_keeps_its_size_under_the_null():
    rng = np.random.default_rng(1)
    runs, n, discordance = 1000, 300, 0.2
    kind = rng.choice(3, p=[discordance / 2, discordance / 2, 1 - discordance], size=(runs, n))
    p = np.array([mcnemar(row == 0, row == 1).p_value for row in kind])
    # The exact test is conservative: at most 5 % rejections, within Monte-Carlo error (3 standard errors).
    assert 0.02 < (p <= 0.05).mean() < 0.05 + 3 * sqrt(0.05 * 0.95 / runs)


def test_bootstrap_interval_covers_the_true_difference():
    rng = np.random.default_rng(2)
    runs, n, gain, loss = 300, 200, 0.18, 0.08
    hits = 0
    for _ in range(runs):
        kind = rng.choice(3, p=[gain, loss, 1 - gain - loss], size=n)
        low, high = bootstrap_difference(kind == 1, kind == 0, rng, resamples=500)
        hits += low <= gain - loss <= high
    assert hits / runs == pytest.approx(0.95, abs=3 * sqrt(0.95 * 0.05 / runs))


def test_bootstrap_matches_the_normal_interval_and_is_repeatable():
    rng = np.random.default_rng(3)
    a = rng.random(3000) < 0.5
    b = np.where(rng.random(3000) < 0.1, True, a)
    ends = bootstrap_difference(a, b, np.random.default_rng(7))
    d = b.astype(float) - a
    half = 1.96 * d.std(ddof=1) / sqrt(len(d))
    assert ends == pytest.approx((d.mean() - half, d.mean() + half), abs=0.001)
    assert ends == bootstrap_difference(a, b, np.random.default_rng(7))


def test_bootstrap_pairs_items():
    # Two policies that always agree differ by exactly nothing, however variable each is.
    a = [True, False] * 50
    assert bootstrap_difference(a, a, np.random.default_rng(0), resamples=200) == (0.0, 0.0)


@pytest.mark.parametrize("call", [mcnemar, lambda a, b: bootstrap_difference(a, b, np.random.default_rng(0))])
def test_unequal_lists_are_refused(call):
    with pytest.raises(ValueError, match="same items"):
        call([True, False], [True])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_holm_is_closed_testing_with_bonferroni(p):
    # Marcus, Peritz and Gabriel (1976): adjusted p of i = max over sets S with i in it of |S| · min p in S.
    indices = range(len(p))
    subsets = [s for size in range(1, len(p) + 1) for s in combinations(indices, size)]
    expected = [min(1.0, max(len(s) * min(p[j] for j in s) for s in subsets if i in s)) for i in indices]
    assert holm(p) == pytest.approx(expected)


def test_power_matches_simulation():
    rng = np.random.default_rng(4)
    n, discordance, difference, runs = 120, 0.3, 0.14, 4000
    shares = [(discordance + difference) / 2, (discordance - difference) / 2, 1 - discordance]
    counts = rng.multinomial(n, shares, size=runs)
    p_value = lru_cache(None)(lambda f, total: stats.binomtest(f, total).pvalue)
    rejected = np.mean([p_value(int(f), int(f + b)) <= 0.05 for f, b, _ in counts])
    power = mcnemar_power(n, discordance, difference)
    assert rejected == pytest.approx(power, abs=4 * sqrt(power * (1 - power) / runs))


def test_power_without_a_difference_is_the_size():
    assert 0 < mcnemar_power(400, 0.2, 0.0) <= 0.05


@pytest.mark.parametrize("n,discordance", [(500, 0.2), (1147, 0.1), (100, 0.5)])
def test_detectable_difference_has_the_power_asked_for(n, discordance):
    d = minimum_detectable_difference(n, discordance)
    assert mcnemar_power(n, max(d, discordance), d) == pytest.approx(0.8, abs=1e-3)
    # Connor (1987), normal approximation; the exact test needs a little more.
    z = 1.959964 * sqrt(discordance) + 0.841621 * sqrt(discordance - d * d)
    assert d == pytest.approx(z / sqrt(n), rel=0.12)
    assert d > z / sqrt(n)


def test_detectable_difference_when_policies_agree_or_items_are_few():
    # Six discordant items pointing one way are the fewest that reach p < 0.05 (2 / 2^6 = 0.031).
    assert minimum_detectable_difference(5, 0.5) is None
    d = minimum_detectable_difference(1000, 0.0)
    assert stats.binom.sf(5, 1000, d) == pytest.approx(0.8, abs=1e-3)
