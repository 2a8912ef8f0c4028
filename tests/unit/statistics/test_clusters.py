"""Clustered intervals and tests: the plain ones where nothing is shared, right where the plain ones err."""

from itertools import product
from math import sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from benchmarks import calibration
from utils.statistics.accuracy_tests import bootstrap_ratios, mcnemar, rate, ratios
from utils.statistics.clusters import (
    cluster_bootstrap,
    cluster_numbers,
    cluster_sizes,
    cluster_sums,
    clustered_rate,
    clustered_ratios,
    design_effect,
    expanded_tail,
    share,
)
from utils.statistics.pass_at_k import mean_shares
from utils.statistics.seed_tests import crossed_test, hierarchical_bootstrap, sign_flip_test

PAGES = np.array([0, 0, 1, 2, 2, 2])


def test_numbers_go_by_first_appearance_and_the_nameless_stand_alone():
    assert cluster_numbers(["b", "a", "b", "", None, ""]).tolist() == [0, 1, 0, 2, 3, 4]
    assert cluster_numbers([0, 0, 1]).tolist() == [0, 0, 1]
    assert cluster_numbers(["a", "b", "", ""]) is None
    assert cluster_numbers([]) is None


def test_sums_are_within_clusters_wherever_their_items_stand():
    values, mixed = np.array([[1, 2, 3], [4, 5, 6]]), np.array([1, 0, 1])
    assert cluster_sums(values, mixed).tolist() == [[2, 4], [5, 10]]
    assert cluster_sizes(PAGES).tolist() == [2, 1, 3]


@given(st.lists(st.booleans(), min_size=2, max_size=60).filter(lambda v: len(set(v)) == 2))
def test_items_on_their_own_are_independent_items(values):
    alone = np.arange(len(values))
    assert design_effect(values, alone) == pytest.approx(1)
    found = share(values, alone)
    assert found["plain95"] == pytest.approx(rate(sum(values), len(values))["ci95"])
    # The t quantile is all that is left of the clusters.
    assert found["ci95"][0] <= found["plain95"][0] and found["ci95"][1] >= found["plain95"][1]
    assert "clusters" not in clustered_rate(values, None) and found["clusters"] == len(values)


@given(st.lists(st.integers(0, 1), min_size=4, max_size=30).filter(lambda v: len(set(v)) == 2))
def test_items_that_always_agree_are_one_item(values):
    doubled, clusters = np.repeat(values, 3), np.repeat(np.arange(len(values)), 3)
    n = len(values)
    assert design_effect(doubled, clusters) == pytest.approx(3 * (3 * n - 1) / (3 * n - 3))
    d = np.where(np.arange(n) % 3 == 0, -1, 1) * values
    both = np.repeat(d, 3)
    assert sign_flip_test([both], clusters) == pytest.approx(sign_flip_test([d]))
    assert crossed_test([both, both], clusters).p_value == pytest.approx(crossed_test([d, d]).p_value)


def test_the_design_effect_is_statsmodels_cluster_robust_variance():
    api = pytest.importorskip("statsmodels.api")
    values, clusters = np.array([1, 1, 0, 0, 0, 1, 1, 0, 1.0]), np.array([0, 0, 1, 1, 1, 2, 2, 3, 3])
    ols = api.OLS(values, np.ones(len(values)))
    robust = ols.fit(cov_type="cluster", cov_kwds={"groups": clusters}).bse[0]
    assert design_effect(values, clusters) == pytest.approx((robust / ols.fit().bse[0]) ** 2)


def test_where_nothing_can_be_estimated_the_interval_is_the_widest():
    same = share([True] * 6, PAGES)
    assert design_effect([True] * 6, PAGES) == pytest.approx(14 / 6)
    assert same["ci95"][0] < same["plain95"][0] and same["ci95"][1] == 1
    assert design_effect([1, 0, 1, 1], np.zeros(4, dtype=int)) == 4
    one = np.zeros(4, dtype=int)
    assert cluster_bootstrap([1, 0, 0, 1], one, np.random.default_rng(0)) == (-1.0, 1.0)
    assert crossed_test([[1, 0, 1, 1]] * 2, one).ci95 == (-1.0, 1.0)
    assert crossed_test([[1, 0, 1, 1]] * 2, one).detectable() is None
    assert sign_flip_test([[1, 0, 1, 1]], one) == 1.0


@given(st.lists(st.integers(-1, 1), min_size=6, max_size=6))
def test_the_clustered_sign_flip_is_the_enumeration_of_all_flips_of_clusters(d):
    sums = [d[0] + d[1], d[2], d[3] + d[4] + d[5]]
    totals = [abs(np.dot(signs, sums)) for signs in product((1, -1), repeat=3)]
    assert sign_flip_test([d], PAGES) == pytest.approx(np.mean(np.array(totals) >= abs(sum(d))))
    alone = np.arange(6)
    assert sign_flip_test([d], alone) == pytest.approx(mcnemar(np.array(d) < 0, np.array(d) > 0).p_value)


@given(st.lists(st.lists(st.integers(-1, 1), min_size=7, max_size=7), min_size=2, max_size=4))
def test_the_crossed_test_on_items_of_their_own_is_the_plain_one(table):
    plain, alone = crossed_test(table), crossed_test(table, np.arange(7))
    for name in ("difference", "ci95", "p_value", "error"):
        assert getattr(alone, name) == pytest.approx(getattr(plain, name)), name


def test_the_crossed_test_of_seeds_that_agree_is_the_cluster_robust_one():
    api = pytest.importorskip("statsmodels.api")
    d, clusters = np.array([1, 1, 0, 0, -1, 1, 1, 0, 1]), np.array([0, 0, 1, 1, 1, 2, 2, 3, 3])
    fitted = api.OLS(d, np.ones(len(d))).fit(
        cov_type="cluster", cov_kwds={"groups": clusters, "use_correction": False}
    )
    test = crossed_test([d, d, d], clusters)
    assert test.difference == pytest.approx(d.mean())
    assert test.error == pytest.approx(fitted.bse[0] * sqrt(4 / 3))


def test_a_large_table_does_not_overflow():
    rng = np.random.default_rng(0)
    table, clusters = rng.integers(-1, 2, (5, 20_000)), np.repeat(np.arange(2000), 10)
    test, plain = crossed_test(table, clusters), crossed_test(table)
    assert test.error == pytest.approx(plain.error, rel=0.1)


def test_the_cluster_bootstrap_is_every_draw_of_clusters():
    d, clusters = np.array([1, 1, 0, -1, 1]), np.array([0, 0, 0, 1, 2])
    draws = hierarchical_bootstrap([[d]], np.random.default_rng(0), 40_000, clusters)[:, 0]
    sums, sizes = np.array([2, -1, 1]), np.array([3, 1, 1])
    every = [sums[list(draw)].sum() / sizes[list(draw)].sum() for draw in product(range(3), repeat=3)]
    found, count = np.unique(draws.round(9), return_counts=True)
    expected, times = np.unique(np.round(every, 9), return_counts=True)
    assert np.array_equal(found, expected)
    assert count / 40_000 == pytest.approx(times / 27, abs=0.01)


def test_the_cluster_bootstrap_matches_the_t_interval_and_is_repeatable():
    rng = np.random.default_rng(1)
    sums = rng.integers(-3, 5, 12)
    d, clusters = np.repeat(sums, 2) / 2, np.repeat(np.arange(12), 2)
    ends = cluster_bootstrap(d, clusters, np.random.default_rng(2))
    expected = stats.t.interval(0.95, 11, d.mean(), (sums / 2).std(ddof=1) / sqrt(12))
    assert ends == pytest.approx(expected, abs=0.12)
    assert ends == cluster_bootstrap(d, clusters, np.random.default_rng(2))


def test_ratios_of_clusters_are_ratios_of_their_sums():
    rng = np.random.default_rng(3)
    sums, weights = rng.normal(size=(6, 2)), rng.integers(1, 9, 6).astype(float)
    found = clustered_ratios(sums, weights, np.random.default_rng(4), PAGES)
    of_pages = cluster_sums(sums.T, PAGES).T, cluster_sums(weights, PAGES)
    assert [each["value"] for each in found] == pytest.approx(sums.sum(0) / weights.sum())
    assert (found[0]["n"], found[0]["clusters"]) == (6, 3)
    ends = bootstrap_ratios(*of_pages, np.random.default_rng(4), tail=expanded_tail(3))
    assert [tuple(each["ci95"]) for each in found] == ends
    assert clustered_ratios(sums, weights, np.random.default_rng(4), None) == ratios(
        sums, weights, np.random.default_rng(4)
    )
    assert clustered_ratios(sums[:2], weights[:2], rng, PAGES[:2])[0]["ci95"] is None


@pytest.mark.parametrize(("count", "tail"), [(2, 0.0), (10, 0.0086), (400, 0.0246)])
def test_few_clusters_have_longer_percentiles(count, tail):
    assert expanded_tail(count) == pytest.approx(tail, abs=1e-4)


def test_shares_of_samples_count_clusters_as_well():
    table = np.array([[1.0, 1.0], [1.0, 1.0], [0.5, 1.0], [0.0, 1.0], [0.0, 1.0], [0.25, 1.0]])
    plain = mean_shares(table, np.random.default_rng(0))
    found = mean_shares(table, np.random.default_rng(0), PAGES)
    assert [each["value"] for each in found] == [each["value"] for each in plain]
    assert found[0]["clusters"] == 3 and 0 <= found[0]["ci95"][0] <= found[0]["ci95"][1] <= 1
    assert found[1]["ci95"][0] < plain[1]["ci95"][0]


# ------------------------------------------------------------------------------------------- simulation


def test_the_simulations_truth_is_the_mean_of_its_answers():
    for alike in calibration.ALIKE:
        answered, _ = calibration.answers_on_reports(np.random.default_rng(2), 300, 1, 60, alike)
        assert answered.mean() == pytest.approx(calibration.accuracy_on_reports(alike), abs=0.012)


def test_by_report_coverage_and_size_are_nominal_where_the_plain_ones_are_not(monkeypatch):
    """600 experiments; the error is three Monte-Carlo standard errors of a nominal share."""
    monkeypatch.setattr(calibration, "REPORTS", (150,))
    monkeypatch.setattr(calibration, "ALIKE", (2.0,))
    monkeypatch.setattr(calibration, "RESAMPLES", 400)
    runs = 600
    found = {row.name: row.share for row in calibration.on_reports(runs, np.random.default_rng(0))}
    error, fewer = (3 * sqrt(0.95 * 0.05 / count) for count in (runs, runs // 2))
    assert found["Wilson interval, by report"] == pytest.approx(0.95, abs=error)
    assert found["Wilson interval, plain"] < 0.95 - 2 * error
    assert found["bootstrap of a difference, by report"] == pytest.approx(0.95, abs=fewer)
    assert found["exact test, by report"] < 0.05 + error < found["exact test, McNemar"]


def test_over_seeds_the_tests_by_report_keep_their_size_and_the_plain_ones_do_not():
    runs, error = 400, 3 * sqrt(0.05 * 0.95 / 400)
    answered, clusters = calibration.answers_on_reports(np.random.default_rng(4), runs, 3, 100, 3.0)
    tables = answered[:, 1].astype(int) - answered[:, 0]
    for test in (lambda d, of: crossed_test(d, of).p_value, sign_flip_test):
        plain, by_report = (np.mean([test(table, of) <= 0.05 for table in tables]) for of in (None, clusters))
        assert by_report < 0.05 + error < plain
