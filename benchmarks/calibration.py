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
from math import sqrt
from pathlib import Path

import numpy as np
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.statistics.accuracy_tests import (
    bootstrap_difference,
    bootstrap_ratios,
    crossed_test,
    fraction,
    hierarchical_bootstrap,
    mcnemar_power,
    percentiles,
    seed_test,
    sign_flip_test,
    wilson_interval,
)

RESAMPLES = 1000  # of the bootstraps: the percentiles of 10,000 differ by less than the Monte-Carlo error
ITEMS = (100, 500, 1147)  # of Wilson's interval; 1147 is FinQA's test split
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
    points, weights = np.polynomial.hermite_e.hermegauss(80)
    logits = 0.3 + sqrt(1.5**2 + 0.5**2 + spread**2) * points
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


PARTS = {f.__name__: f for f in (wilson, fractions, mcnemar, paired_bootstrap, over_seeds, seeds_alone)}


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
