"""How often the intervals and tests of an evaluation err, simulated where the truth is known.

    python benchmarks/calibration.py [--runs 2000] [--seed 0] [--only wilson,mcnemar]

Every row is an interval (share of experiments in which it covers the truth; nominal 95 %) or a test (share in
which it rejects a true null hypothesis at level 5 %; a valid test does so in at most 5 %), with that share's
Monte-Carlo standard error. Wilson's interval and the McNemar test are summed exactly over all outcomes.

Answers of methods trained from several seeds come from a logistic model: items differ in ease, methods
differ in what they find easy, and every seed moves its policy up or down by ``spread`` logits.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from math import sqrt
from pathlib import Path

import numpy as np
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.statistics.accuracy_tests import (
    bootstrap_difference,
    bootstrap_ratios,
    fraction,
    mcnemar_power,
    percentiles,
    wilson_interval,
)
from utils.statistics.clusters import cluster_bootstrap, clustered_rate
from utils.statistics.seed_tests import (
    crossed_test,
    hierarchical_bootstrap,
    seed_test,
    sign_flip_test,
)

RESAMPLES = 1000  # of the bootstraps: the percentiles of 10,000 differ by less than the Monte-Carlo error
ITEMS = (100, 500, 1147)  # of Wilson's interval; 1147 is FinQA's test split
# Questions per report in the proportions of FinQA's test split (431 of 149 reports).
REPORT_SIZES = (4, 2, 3, 4, 2, 4, 1, 2, 4, 3)
REPORTS = (150, 40, 10)
ALIKE = (0.0, 1.0, 2.0)  # logits: answers to one report correlate by 0, 0.15 and 0.37
SPREADS = (0.0, 0.1, 0.2, 0.4)  # logits; 0.1 is about 1.7 points of accuracy


@dataclass(frozen=True)
class Row:
    """What was simulated, the share, its Monte-Carlo error (0: computed exactly), and what it should be."""

    name: str
    setting: str
    share: float
    error: float
    nominal: str


def simulated(name: str, setting: str, hits: np.ndarray, nominal: str) -> Row:
    """A row from one truth value per experiment."""
    share = float(np.mean(hits))
    return Row(name, setting, share, sqrt(share * (1 - share) / len(hits)), nominal)


def wilson(runs: int, rng: np.random.Generator) -> Iterator[Row]:
    """Exact, over accuracies from 5 to 95 %."""
    for n in ITEMS:
        ends = np.array([wilson_interval(k, n) for k in range(n + 1)])
        truths = np.linspace(0.05, 0.95, 181)
        covers = np.array(
            [
                stats.binom.pmf(np.arange(n + 1), n, p) @ ((ends[:, 0] <= p) & (p <= ends[:, 1]))
                for p in truths
            ]
        )
        yield Row("Wilson interval", f"n {n}, mean over accuracies", float(covers.mean()), 0.0, "95 %")
        yield Row("Wilson interval", f"n {n}, worst accuracy", float(covers.min()), 0.0, "95 %")


def fractions(runs: int, rng: np.random.Generator) -> Iterator[Row]:
    """Means of shares per item: of yes/no, of few steps, and nearly always 1."""
    kinds: dict[str, tuple[float, Callable]] = {
        "yes or no, 80 %": (0.8, lambda size: rng.random(size) < 0.8),
        "shares of 3 steps, 60 %": (0.6, lambda size: rng.binomial(3, 0.6, size) / 3),
        "nearly all 1": (0.9975, lambda size: np.where(rng.random(size) < 0.005, 0.5, 1.0)),
    }
    for name, (truth, draw) in kinds.items():
        ends = [fraction(values)["ci95"] for values in draw((runs, 500))]
        hits = np.array([low <= truth <= high for low, high in ends])
        yield simulated("interval of a mean share", f"n 500, {name}", hits, ">= 95 %")


def mcnemar(runs: int, rng: np.random.Generator) -> Iterator[Row]:
    """Exact, by the number of items that the policies disagree on."""
    for n, discordance in ((100, 0.2), (500, 0.05), (500, 0.2), (1147, 0.2)):
        size = mcnemar_power(n, discordance, 0.0)
        yield Row("exact McNemar test", f"n {n}, disagree on {discordance:.0%}", size, 0.0, "<= 5 %")


def paired_bootstrap(runs: int, rng: np.random.Generator) -> Iterator[Row]:
    """Difference of two policies on the same items, and a ratio of sums (tokens of items)."""
    for n in (100, 500):
        kind = rng.choice(3, p=[0.16, 0.10, 0.74], size=(runs, n))
        ends = [bootstrap_difference(row == 1, row == 0, rng, resamples=RESAMPLES) for row in kind]
        hits = np.array([low <= 0.06 <= high for low, high in ends])
        yield simulated("bootstrap of a difference", f"n {n}, 6 points", hits, "95 %")
    tokens = rng.integers(5, 60, (runs, 200)).astype(float)
    sums = tokens * rng.gamma(4.0, 0.05, tokens.shape)  # the mean per token is 0.2
    ends = [bootstrap_ratios(s[:, None], t, rng, RESAMPLES)[0] for s, t in zip(sums, tokens, strict=True)]
    hits = np.array([low <= 0.2 <= high for low, high in ends])
    yield simulated("bootstrap of a mean over tokens", "200 items", hits, "95 %")


def answers(
    rng: np.random.Generator, runs: int, methods: int, seeds: int, items: int, spread: float, own: float = 0.5
) -> np.ndarray:
    """Answers of equally good methods: bool [runs, methods, seeds, items].

    ``own`` is how much methods differ in what they find easy (logits); they are equally good on all possible
    items, but with ``own`` above 0 not on the items that were drawn.
    """
    ease = rng.normal(0.3, 1.5, (runs, 1, 1, items)) + rng.normal(0, own, (runs, methods, 1, items))
    luck = rng.normal(0, spread, (runs, methods, seeds, 1)) if spread else 0.0
    return rng.random((runs, methods, seeds, items)) < 1 / (1 + np.exp(-ease - luck))


def accuracy(spread: float) -> float:
    """The true mean accuracy of ``answers``, by quadrature over the sum of its normal terms."""
    return logistic_mean(sqrt(1.5**2 + 0.5**2 + spread**2))


def logistic_mean(deviation: float) -> float:
    """The mean of 1 / (1 + exp(-x)) for x normal about 0.3, by quadrature."""
    points, weights = np.polynomial.hermite_e.hermegauss(80)
    logits = 0.3 + deviation * points
    return float((weights / weights.sum()) @ (1 / (1 + np.exp(-logits))))


def over_seeds(runs: int, rng: np.random.Generator) -> Iterator[Row]:
    """Two tests of a difference and the hierarchical bootstrap of a mean, by what seeds do."""
    for seeds in (3, 5):
        for spread in SPREADS:
            setting = f"{seeds} seeds, 500 items, spread {spread:g}"
            both = answers(rng, runs, 2, seeds, 500, spread).astype(int)
            tables = both[:, 1] - both[:, 0]
            tests = [crossed_test(table) for table in tables]
            rejected = np.array([test.p_value <= 0.05 for test in tests])
            yield simulated("seeds and items (crossed t)", setting, rejected, "<= 5 %")
            covers = np.array([test.ci95[0] <= 0 <= test.ci95[1] for test in tests])
            yield simulated("its interval", setting, covers, ">= 95 %")
            flips = np.array([sign_flip_test(table) <= 0.05 for table in tables])
            yield simulated("items only (sign flip)", setting, flips, "<= 5 % at spread 0")
            truth = accuracy(spread)
            few = [
                percentiles(hierarchical_bootstrap(c[:1], rng, RESAMPLES)[:, 0]) for c in both[: runs // 4]
            ]
            hits = np.array([low <= truth <= high for low, high in few])
            yield simulated("hierarchical bootstrap of a mean", setting, hits, "95 %")


def seeds_alone(runs: int, rng: np.random.Generator) -> Iterator[Row]:
    """The t test over seeds; its null hypothesis is about the items at hand: methods differ on none."""
    for seeds in (3, 5):
        for spread in SPREADS:
            both = answers(rng, runs, 2, seeds, 500, spread, own=0.0).astype(int)
            tests = [seed_test(table) for table in both[:, 1] - both[:, 0]]
            hits = np.array([test is not None and test.p_value <= 0.05 for test in tests])
            setting = f"{seeds} seeds, 500 items, spread {spread:g}"
            yield simulated("seeds only (paired t)", setting, hits, "5 %")


def answers_on_reports(
    rng: np.random.Generator, runs: int, seeds: int, reports: int, alike: float, spread: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Answers of two equally good methods to questions about reports, and the number of each item's report.

    Reports have as many questions as those of FinQA's test split. ``alike`` is the standard deviation in
    logits of what a report does to all its questions, for both methods; another half as large is a method's
    own. Returns bool [runs, 2, seeds, items] and int [items].
    """
    clusters = np.repeat(np.arange(reports), np.resize(REPORT_SIZES, reports))
    items = len(clusters)
    of_report = rng.normal(0, 1, (runs, 1, 1, reports)) + 0.5 * rng.normal(0, 1, (runs, 2, 1, reports))
    ease = 0.3 + rng.normal(0, 1, (runs, 1, 1, items)) + rng.normal(0, 0.5, (runs, 2, 1, items))
    luck = rng.normal(0, spread, (runs, 2, seeds, 1)) if spread else 0.0
    logits = ease + alike * of_report[..., clusters] + luck
    return rng.random((runs, 2, seeds, items)) < 1 / (1 + np.exp(-logits)), clusters


def accuracy_on_reports(alike: float, spread: float = 0.0) -> float:
    """The true mean accuracy of ``answers_on_reports``."""
    return logistic_mean(sqrt(1.25 + 1.25 * alike**2 + spread**2))


def on_reports(runs: int, rng: np.random.Generator) -> Iterator[Row]:
    """Intervals and tests of items that share reports: taken as independent, and by report."""
    for reports, alike in product(REPORTS, ALIKE):
        answered, clusters = answers_on_reports(rng, runs, 1, reports, alike)
        right, truth = answered[:, :, 0], accuracy_on_reports(alike)
        setting = f"{len(clusters)} items of {reports} reports, alike {alike:g}"
        rates = [clustered_rate(row, clusters) for row in right[:, 0]]
        for kind, key in (("plain", "plain95"), ("by report", "ci95")):
            hits = np.array([each[key][0] <= truth <= each[key][1] for each in rates])
            yield simulated(f"Wilson interval, {kind}", setting, hits, "95 %")
        few = right[: runs // 2]
        plain = [bootstrap_difference(a, b, rng, RESAMPLES) for a, b in few]
        whole = [cluster_bootstrap(b.astype(int) - a, clusters, rng, RESAMPLES) for a, b in few]
        for kind, ends in (("plain", plain), ("by report", whole)):
            hits = np.array([low <= 0 <= high for low, high in ends])
            yield simulated(f"bootstrap of a difference, {kind}", setting, hits, "95 %")
        differences = right[:, 1].astype(int) - right[:, 0]
        for kind, of in (("McNemar", None), ("by report", clusters)):
            hits = np.array([sign_flip_test([row], of) <= 0.05 for row in differences])
            yield simulated(f"exact test, {kind}", setting, hits, "<= 5 %")


def seeds_on_reports(runs: int, rng: np.random.Generator) -> Iterator[Row]:
    """The tests over seeds and items, where items share reports."""
    for reports, alike, spread in product(REPORTS[:1], ALIKE, (0.0, 0.2)):
        answered, clusters = answers_on_reports(rng, runs, 3, reports, alike, spread)
        setting = f"3 seeds, {reports} reports, alike {alike:g}, spread {spread:g}"
        tables = answered[:, 1].astype(int) - answered[:, 0]
        truth = accuracy_on_reports(alike, spread)
        for kind, of in (("plain", None), ("by report", clusters)):
            tests = [crossed_test(table, of) for table in tables]
            rejected = np.array([test.p_value <= 0.05 for test in tests])
            yield simulated(f"seeds and items (crossed t), {kind}", setting, rejected, "<= 5 %")
            flips = np.array([sign_flip_test(table, of) <= 0.05 for table in tables])
            yield simulated(f"items only (sign flip), {kind}", setting, flips, "<= 5 % at spread 0")
            drawn = [hierarchical_bootstrap(c[:1], rng, RESAMPLES, of)[:, 0] for c in answered[: runs // 4]]
            hits = np.array([low <= truth <= high for low, high in map(percentiles, drawn)])
            yield simulated(f"hierarchical bootstrap of a mean, {kind}", setting, hits, "95 %")


PARTS = {
    part.__name__: part
    for part in (
        *(wilson, fractions, mcnemar, paired_bootstrap),
        *(over_seeds, seeds_alone, on_reports, seeds_on_reports),
    )
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(PARTS))
    options = parser.parse_args()
    print("| interval or test | setting | share | Monte-Carlo error | nominal |\n|---|---|---|---|---|")
    for name in options.only.split(","):
        for row in PARTS[name](options.runs, np.random.default_rng(options.seed)):
            error = f"{row.error:.1%}" if row.error else "exact"
            print(f"| {row.name} | {row.setting} | {row.share:.1%} | {error} | {row.nominal} |", flush=True)


if __name__ == "__main__":
    main()
