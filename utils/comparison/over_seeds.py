"""Policies over several training seeds: means, intervals and tests that count seeds as well as items."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pandas as pd

from utils.comparison.estimates import Estimate
from utils.comparison.paired import ALPHA, POWER, PolicyResult, corrected, load_result, side_by_side
from utils.comparison.seed_runs import SeedRuns
from utils.evaluation.policy_names import evaluation_files
from utils.frame.files import UserError, derive_seed
from utils.frame.stage import no_bar
from utils.statistics.accuracy_tests import mcnemar, percentiles
from utils.statistics.clusters import clustered_rate
from utils.statistics.seed_tests import (
    SeedTest,
    crossed_test,
    hierarchical_bootstrap,
    seed_test,
    sign_flip_test,
)


@dataclass(frozen=True)
class Experiment:
    """Policies that several runs trained and evaluated on the same items, each run with its seed.

    Attributes:
        runs, seeds: S of them, in the order of the seeds.
        results: policy -> its result in each run, all on the n items of the first in its file's order.
        correct: bool [policies, S, n].
        means: mean accuracy of every policy over all items.
        clusters: [n], the number of each item's report; None where no two items share one.
        draws: float64 [resamples, policies], the bootstrap's mean accuracies over all items.
        seed: of the bootstrap.
    """

    runs: list[str]
    seeds: list[int]
    results: dict[str, list[PolicyResult]]
    correct: np.ndarray
    means: list[Estimate]
    draws: np.ndarray
    seed: int = 0
    clusters: np.ndarray | None = None

    @property
    def policies(self) -> list[str]:
        return list(self.results)

    @property
    def items(self) -> pd.DataFrame:
        """The items by id, with their levels and golds (and the answers of one policy)."""
        return next(iter(self.results.values()))[0].items


@dataclass(frozen=True)
class SeedPair:
    """Policy B against policy A over all seeds.

    Attributes:
        difference: mean accuracy of B minus mean accuracy of A.
        ci95, p_value, p_holm: of the test that counts seeds and items as samples: what would be found with
            other seeds and other items (reports, where items share one). ``p_value`` is the crossed t test's,
            and never below ``p_items``.
        clusters: how many reports the items come from, None where each is on its own.
        plain95, p_plain: the same as ``ci95`` and ``p_value``, were all items independent.
        bootstrap95: paired hierarchical bootstrap interval of the difference.
        p_items, p_items_holm: exact sign-flip test over items: other items, but these trained policies.
        over_seeds: paired t test over seeds: other seeds, but these items; None where no spread is seen.
        p_mcnemar: exact McNemar test within each seed.
        p_each_seed: the same, or where items share reports the exact test that exchanges whole reports.
        detectable: smallest true difference that the test over seeds and items finds with 80 % power at the
            level of Holm's strictest step (0.05 / number of pairs and looks); None where no spread is seen,
            or it could find none.
    """

    a: str
    b: str
    difference: float
    ci95: tuple[float, float]
    bootstrap95: tuple[float, float]
    p_value: float
    p_items: float
    over_seeds: SeedTest | None
    p_mcnemar: list[float]
    p_each_seed: list[float]
    detectable: float | None
    plain95: tuple[float, float]
    p_plain: float
    clusters: int | None = None
    p_holm: float = 1.0
    p_items_holm: float = 1.0

    @property
    def significant(self) -> bool:
        return self.p_holm < ALPHA

    @property
    def significant_here(self) -> bool:
        """Whether the trained policies differ, other seeds apart."""
        return self.p_items_holm < ALPHA


def load_experiment(runs: SeedRuns, seed: int) -> Experiment:
    """Read the evaluations of all runs and bootstrap their means; ``seed`` is the bootstrap's."""
    results = {
        policy: [load_result(policy, *evaluation_files(folder)) for folder in folders]
        for policy, folders in runs.folders.items()
    }
    return gather(results, runs.runs, runs.seeds, seed)


def gather(
    results: dict[str, Sequence[PolicyResult]], runs: Sequence[str], seeds: Sequence[int], seed: int
) -> Experiment:
    """Put the policies of all runs on the same items and bootstrap their means.

    Args:
        results: policy -> its result in each run, in the order of ``runs``.
        runs, seeds: names and seeds of the runs.
        seed: of the bootstrap.

    Raises:
        UserError: where any two evaluations differ in data set, split, items or golds.
    """
    reference = next(iter(results.values()))[0]
    aligned = {
        policy: [
            _on_items_of(reference, result, f"'{reference.name}' of {runs[0]} with '{policy}' of {run}")
            for result, run in zip(of_runs, runs, strict=True)
        ]
        for policy, of_runs in results.items()
    }
    correct = np.array([[result.items["correct"] for result in of_runs] for of_runs in aligned.values()])
    if correct.shape[2] < 2:
        raise UserError(
            f"cannot compare on {correct.shape[2]} item, need 2; evaluate more with 10_evaluate.py"
        )
    clusters = _clusters_of(aligned)
    means, draws = mean_accuracies(correct, seed, "all", clusters)
    return Experiment(list(runs), list(seeds), aligned, correct, means, draws, seed, clusters)


def _clusters_of(results: dict[str, list[PolicyResult]]) -> np.ndarray | None:
    """The number of each item's report, from any evaluation that names them: older ones do not."""
    every = [result.clusters for of_runs in results.values() for result in of_runs]
    return next((clusters for clusters in every if clusters is not None), None)


def _on_items_of(reference: PolicyResult, result: PolicyResult, named: str) -> PolicyResult:
    """The result with its items in the order of the reference's; UserError where they are not the same."""
    both = side_by_side(reference, result, named)
    for item in reference.items.index.symmetric_difference(result.items.index, sort=False):
        counts = f"{len(reference.items)} and {len(result.items)}"
        raise UserError(
            f"cannot compare {named}: {counts} test items, and '{item}' is in one only; evaluate both on the "
            "same items"
        )
    return replace(result, items=result.items.loc[both.index])


def mean_accuracies(
    correct: np.ndarray, seed: int, part: str | int, clusters: np.ndarray | None
) -> tuple[list[Estimate], np.ndarray]:
    """Mean of every policy with its interval, and the bootstrap's draws [resamples, policies].

    The interval is that of a hierarchical bootstrap (seeds, and items or their clusters). Where every answer
    is the same a bootstrap sees no uncertainty, and it is Wilson's for the number of items or of clusters.
    """
    rng = np.random.default_rng(derive_seed(seed, "bootstrap over seeds", part))
    draws, n = hierarchical_bootstrap(correct, rng, clusters=clusters), correct.shape[2]
    means = []
    for of_policy, column in zip(correct, draws.T, strict=True):
        constant = of_policy.all() or not of_policy.any()
        ci95 = tuple(clustered_rate(of_policy[0], clusters)["ci95"]) if constant else percentiles(column)
        means.append(Estimate(float(of_policy.mean()), ci95, n, tuple(of_policy.mean(axis=1).tolist())))
    return means, draws


def compare_seeds(
    experiment: Experiment, looks: int = 1, progress: Callable[..., Iterable] = no_bar
) -> list[SeedPair]:
    """Every pair of policies, in order; both tests are corrected over all pairs and over ``looks``.

    ``progress``: as `StageContext.progress`.
    """
    pairs, clusters = [], experiment.clusters
    couples = list(combinations(range(len(experiment.policies)), 2))
    for a, b in progress(couples, description="comparing"):
        right_a, right_b = experiment.correct[a], experiment.correct[b]
        differences = right_b.astype(int) - right_a
        both, p_items = crossed_test(differences, clusters), sign_flip_test(differences, clusters)
        plain = crossed_test(differences)
        pairs.append(
            SeedPair(
                a=experiment.policies[a],
                b=experiment.policies[b],
                difference=both.difference,
                ci95=both.ci95,
                bootstrap95=percentiles(experiment.draws[:, b] - experiment.draws[:, a]),
                # A claim about other seeds and other items is never surer than one about other items alone;
                # where few items changed, the exact test is the one to trust.
                p_value=max(both.p_value, p_items),
                p_items=p_items,
                over_seeds=seed_test(differences),
                p_mcnemar=_within_seeds(right_a, right_b, None),
                p_each_seed=_within_seeds(right_a, right_b, clusters),
                detectable=both.detectable(ALPHA / len(couples) / looks, POWER),
                plain95=plain.ci95,
                p_plain=max(plain.p_value, sign_flip_test(differences)),
                clusters=None if clusters is None else int(clusters.max()) + 1,
            )
        )
    p_values = [[pair.p_value for pair in pairs], [pair.p_items for pair in pairs]]
    both = (corrected(of_test, looks) for of_test in p_values)
    return [replace(pair, p_holm=p, p_items_holm=q) for pair, p, q in zip(pairs, *both, strict=True)]


def _within_seeds(right_a: np.ndarray, right_b: np.ndarray, clusters: np.ndarray | None) -> list[float]:
    if clusters is None:
        return [mcnemar(a, b).p_value for a, b in zip(right_a, right_b, strict=True)]
    return [sign_flip_test(row, clusters) for row in right_b.astype(int) - right_a]
