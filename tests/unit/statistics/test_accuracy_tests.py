"""Intervals and tests against closed forms, textbook values and simulation under a known truth."""

from functools import lru_cache
from itertools import combinations, product
from math import comb, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from utils.statistics.accuracy_tests import (
    bootstrap_difference,
    holm,
    mcnemar,
    mcnemar_power,
    minimum_detectable_difference,
    percentiles,
    rate,
    wilson_interval,
)
from utils.statistics.seed_tests import (
    crossed_test,
    hierarchical_bootstrap,
    seed_test,
    sign_flip_test,
)


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
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


# ------------------------------------------------------------------------------------- seeds and items

TABLES = st.tuples(st.integers(2, 4), st.integers(2, 8)).flatmap(
    lambda shape: st.lists(
        st.lists(st.integers(-1, 1), min_size=shape[1], max_size=shape[1]),
        min_size=shape[0],
        max_size=shape[0],
    )
)


def policies(rng, runs, seeds, items, seed_sd):
    """Answers of two equally good methods on items of varying difficulty: bool [runs, 2, seeds, items].

    ``seed_sd`` is the spread, in logits, of what a seed does to one method.
    """
    ease = rng.normal(0.3, 1.5, (runs, 1, 1, items)) + rng.normal(0, 0.5, (runs, 2, 1, items))
    luck = rng.normal(0, seed_sd, (runs, 2, seeds, 1))
    return rng.random((runs, 2, seeds, items)) < 1 / (1 + np.exp(-ease - luck))


@given(TABLES)
def test_crossed_test_is_the_analysis_of_variance(table):
    d = np.array(table, dtype=float)
    seeds, items = d.shape
    rest = d - d.mean(1, keepdims=True) - d.mean(0, keepdims=True) + d.mean()
    ms_seed = items * d.mean(1).var(ddof=1)
    ms_item = seeds * d.mean(0).var(ddof=1)
    ms_rest = (rest**2).sum() / ((seeds - 1) * (items - 1))
    spread = max(ms_seed, ms_rest) + max(ms_item - ms_rest, 0)
    test = crossed_test(table)
    assert test.difference == pytest.approx(d.mean())
    if spread < 1e-9:
        assert test.ci95 == (test.difference, test.difference)
        assert test.p_value == (0.0 if d.any() else 1.0)
        return
    df = spread**2 / (ms_seed**2 / (seeds - 1)) if ms_seed > 1e-9 else np.inf
    error = sqrt(spread / d.size)
    assert test.df == pytest.approx(df)
    assert test.p_value == pytest.approx(2 * stats.t.sf(abs(d.mean()) / error, df))
    assert test.ci95 == pytest.approx(stats.t.interval(0.95, df, d.mean(), error))


def test_crossed_test_is_not_surer_than_the_items_where_seeds_agree_by_luck():
    # Every seed gains 10 of 30 items, each others: no spread of seeds or items is left, only the rest's,
    # 30 squares of 2/3 and 60 of 1/3 with 2 * 29 degrees of freedom.
    test = crossed_test(np.kron(np.eye(3, dtype=int), np.ones(10, dtype=int)))
    error = sqrt(20 / 58 / 90)
    assert test.df == np.inf
    assert test.ci95 == pytest.approx(stats.norm.interval(0.95, 1 / 3, error))


def test_crossed_test_with_one_source_of_spread_is_the_test_for_that_source():
    item = np.array([1, 0, 0, -1, 1, 1, 0, 1])
    z = item.mean() / (item.std(ddof=1) / sqrt(8))
    assert crossed_test([item] * 3).p_value == pytest.approx(2 * stats.norm.sf(z))
    seeds = np.repeat([[1], [0], [1], [1]], 50, axis=1)
    expected = stats.ttest_1samp(seeds[:, 0], 0)
    assert crossed_test(seeds).df == 3
    assert crossed_test(seeds).p_value == pytest.approx(expected.pvalue)
    assert crossed_test(seeds).ci95 == pytest.approx(tuple(expected.confidence_interval()))


@pytest.mark.parametrize("seed_sd", [0.0, 0.2, 0.8])
def test_with_three_seeds_the_crossed_test_keeps_its_size_and_the_item_test_does_not(seed_sd):
    # With a logit spread of 0.2 one method's seeds differ by about 3.5 points (standard deviation).
    rng, runs = np.random.default_rng(5), 400
    a, b = policies(rng, runs, 3, 300, seed_sd).astype(int).transpose(1, 0, 2, 3)
    crossed = np.mean([crossed_test(y - x).p_value <= 0.05 for x, y in zip(a, b, strict=True)])
    items = np.mean([sign_flip_test(y - x) <= 0.05 for x, y in zip(a, b, strict=True)])
    assert crossed < 0.05 + 3 * sqrt(0.05 * 0.95 / runs)
    assert items < 0.08 if seed_sd == 0 else items > 0.2


@given(TABLES)
def test_sign_flip_is_the_enumeration_of_all_flips(table):
    sums = np.array(table).sum(0)
    totals = [abs(np.dot(signs, sums)) for signs in product((1, -1), repeat=len(sums))]
    assert sign_flip_test(table) == pytest.approx(np.mean(np.array(totals) >= abs(sums.sum())))


def test_sign_flip_is_scipys_exact_permutation_test():
    table = np.array([[1, 0, 1, -1, 1, 0, 1, 1], [1, 1, 1, 0, 0, 0, 1, -1], [0, 1, 1, 0, 1, 0, 1, 1]])
    sums = table.sum(0)
    exact = stats.permutation_test(
        (sums, np.zeros(8)), lambda x, y: np.sum(x - y), permutation_type="samples", n_resamples=np.inf
    )
    assert sign_flip_test(table) == pytest.approx(exact.pvalue)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=300))
@settings(max_examples=40)
def test_sign_flip_of_one_seed_is_mcnemar(pairs):
    a, b = np.array(pairs).astype(int).T
    assert sign_flip_test([b - a]) == pytest.approx(mcnemar(a, b).p_value)
    # Seeds that agree in everything add nothing to what one of them shows.
    assert sign_flip_test([b - a] * 4) == pytest.approx(mcnemar(a, b).p_value)


def test_seed_test_is_the_t_test_on_the_seeds():
    table = np.zeros((3, 100), dtype=int)
    for row, count in zip(table, (4, 10, 7), strict=True):
        row[:count] = 1
    error = 0.03 / sqrt(3)
    test = seed_test(table)
    assert test.p_value == pytest.approx(2 * stats.t.sf(0.07 / error, 2))
    assert test.ci95 == pytest.approx(stats.t.interval(0.95, 2, 0.07, error))
    assert seed_test([[1, 0, 0], [0, 0, 1], [0, 1, 0]]) is None


@pytest.mark.parametrize("call", [crossed_test, seed_test])
@pytest.mark.parametrize("table", [[[1, 0, 1]], [[1], [0]], [1, 0]])
def test_one_seed_or_one_item_is_refused(call, table):
    with pytest.raises(ValueError, match="at least 2 seeds and 2 items"):
        call(table)


def test_hierarchical_bootstrap_is_every_draw_of_seeds_and_items():
    correct = np.array([[[1, 0, 0], [1, 1, 0]], [[0, 0, 1], [1, 1, 1]]])
    draws = hierarchical_bootstrap(correct, np.random.default_rng(0), resamples=40_000)
    every = np.array(
        [
            correct[:, list(seeds)][:, :, list(items)].mean(axis=(1, 2))
            for seeds in product(range(2), repeat=2)
            for items in product(range(3), repeat=3)
        ]
    )
    assert draws.shape == (40_000, 2)
    assert draws.mean(0) == pytest.approx(every.mean(0), abs=0.006)
    assert np.cov(draws.T) == pytest.approx(np.cov(every.T, ddof=0), abs=0.002)
    found, share = np.unique(draws.round(9), axis=0, return_counts=True)
    expected, count = np.unique(every.round(9), axis=0, return_counts=True)
    assert np.array_equal(found, expected)
    assert share / 40_000 == pytest.approx(count / len(every), abs=0.01)


def test_hierarchical_bootstrap_without_spread_of_seeds_is_that_of_items():
    answers = np.arange(200) < 120
    draws = hierarchical_bootstrap([[answers] * 3], np.random.default_rng(1))[:, 0]
    expected = tuple(stats.binom.ppf([0.025, 0.975], 200, 0.6) / 200)
    assert percentiles(draws) == pytest.approx(expected, abs=1 / 200)
    assert draws.std() == pytest.approx(sqrt(0.6 * 0.4 / 200), rel=0.03)


def test_hierarchical_bootstrap_without_spread_of_items_is_that_of_seeds():
    answers = np.repeat([[True], [False], [True]], 50, axis=1)
    draws = hierarchical_bootstrap([answers], np.random.default_rng(2))[:, 0]
    for right in range(4):
        share = np.isclose(draws, right / 3).mean()
        assert share == pytest.approx(stats.binom.pmf(right, 3, 2 / 3), abs=0.015)


def test_hierarchical_bootstrap_pairs_policies_and_is_repeatable():
    a, b = np.random.default_rng(3).random((2, 3, 40)) < 0.6
    draws = hierarchical_bootstrap([a, b, a], np.random.default_rng(4), resamples=500)
    assert np.array_equal(draws[:, 0], draws[:, 2]) and not np.array_equal(draws[:, 0], draws[:, 1])
    alone = hierarchical_bootstrap([b], np.random.default_rng(4), resamples=500)
    assert np.array_equal(draws[:, 1], alone[:, 0])


@pytest.mark.parametrize("identical", [True, False])
def test_hierarchical_bootstrap_covers_the_truth(identical):
    # Where seeds do not differ at all it is the item bootstrap; where they differ by chance alone it counts
    # that chance more than once and errs to the safe side.
    rng, runs, hits = np.random.default_rng(6), 300, 0
    for _ in range(runs):
        correct = np.tile(rng.random(150) < 0.6, (3, 1)) if identical else rng.random((3, 150)) < 0.6
        low, high = percentiles(hierarchical_bootstrap([correct], rng, resamples=400)[:, 0])
        hits += low <= 0.6 <= high
    error = 3 * sqrt(0.95 * 0.05 / runs)
    assert hits / runs == pytest.approx(0.95, abs=error) if identical else hits / runs > 0.97
