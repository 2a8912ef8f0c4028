"""Policies over several training seeds: means, intervals and tests that count seeds as well as items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from utils.comparison.paired import ALPHA, POWER, PolicyResult, load_result, summary_rows
from utils.comparison.seed_runs import SeedRuns
from utils.evaluation.policy_names import evaluation_files
from utils.frame.files import UserError, derive_seed
from utils.statistics.accuracy_tests import (
    SeedTest,
    crossed_test,
    hierarchical_bootstrap,
    holm,
    mcnemar,
    percentiles,
    seed_test,
    sign_flip_test,
    wilson_interval,
)


@dataclass(frozen=True)
class SeedMean:
    """A mean accuracy over seeds, with the interval of a hierarchical bootstrap (seeds and items).

    Where every answer is the same a bootstrap sees no uncertainty; the interval is then Wilson's for the
    number of items.
    """

    value: float
    ci95: tuple[float, float]
    n: int


@dataclass(frozen=True)
class Experiment:
    """Policies that several runs trained and evaluated on the same items, each run with its seed.

    Attributes:
        runs, seeds: S of them, in the order of the seeds.
        ids, levels: n items, in file order of the first run.
        results: policy -> its result in each run.
        correct: bool [policies, S, n].
        means: mean over all items, one per policy.
        level_means: level -> mean over its items, one per policy.
        draws: float64 [resamples, policies], the bootstrap's mean accuracies over all items.
        seed: of the bootstrap.
    """

    runs: list[str]
    seeds: list[int]
    ids: list[str]
    levels: list[int | None]
    results: dict[str, list[PolicyResult]]
    correct: np.ndarray
    means: list[SeedMean]
    level_means: dict[int, list[SeedMean]]
    draws: np.ndarray
    seed: int = 0

    @property
    def policies(self) -> list[str]:
        return list(self.results)

    @property
    def accuracies(self) -> np.ndarray:
        """Accuracy of every policy with every seed: float64 [policies, S]."""
        return self.correct.mean(axis=2)

    def level_accuracies(self, level: int) -> np.ndarray:
        """The same over the items of one level."""
        return self.correct[:, :, [at == level for at in self.levels]].mean(axis=2)


@dataclass(frozen=True)
class SeedPair:
    """Policy B against policy A over all seeds.

    Attributes:
        difference: mean accuracy of B minus mean accuracy of A.
        ci95, p_value, p_holm: of the test that counts seeds and items as samples: what would be found with
            other seeds and other items. ``p_value`` is the crossed t test's, and never below ``p_items``.
        bootstrap95: paired hierarchical bootstrap interval of the difference.
        p_items, p_items_holm: exact sign-flip test over items: other items, but these trained policies.
        over_seeds: paired t test over seeds: other seeds, but these items; None where no spread is seen.
        p_mcnemar: exact McNemar test within each seed.
        detectable: smallest true difference that the test over seeds and items finds with 80 % power at the
            level of Holm's strictest step (0.05 / number of pairs); None where no spread is seen, or it could
            find none.
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
    detectable: float | None
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
            _on_items_of(reference, runs[0], result, run) for result, run in zip(of_runs, runs, strict=True)
        ]
        for policy, of_runs in results.items()
    }
    correct = np.array([[result.correct for result in of_runs] for of_runs in aligned.values()], dtype=bool)
    if correct.shape[2] < 2:
        raise UserError(
            f"cannot compare on {correct.shape[2]} item, need 2; evaluate more with 10_evaluate.py"
        )
    means, draws = mean_accuracies(correct, seed, "all")
    level_means = {}
    for level in sorted({level for level in reference.levels if level is not None}):
        of_level = correct[:, :, [at == level for at in reference.levels]]
        level_means[level], _ = mean_accuracies(of_level, seed, level)
    return Experiment(
        list(runs),
        list(seeds),
        reference.ids,
        reference.levels,
        aligned,
        correct,
        means,
        level_means,
        draws,
        seed,
    )


def _on_items_of(reference: PolicyResult, first_run: str, result: PolicyResult, run: str) -> PolicyResult:
    """The result with its items in the order of the reference's; UserError where they are not the same."""
    pair = f"'{reference.name}' of {first_run} and '{result.name}' of {run}"
    remedy = "evaluate all policies of all runs on the same items"
    for key in ("dataset", "split"):
        a, b = reference.metrics.get(key), result.metrics.get(key)
        if a != b:
            raise UserError(f"{pair} have different test items: {key} is {a!r} and {b!r}; {remedy}")
    row_of = {item: row for row, item in enumerate(result.ids)}
    odd = [item for item in reference.ids if item not in row_of]
    odd += sorted(set(result.ids) - set(reference.ids))
    if odd:
        raise UserError(
            f"{pair} have different test items: {len(reference.ids)} and {len(result.ids)}, and '{odd[0]}' "
            f"is in one only; {remedy}"
        )
    rows = [row_of[item] for item in reference.ids]
    for item, row, gold in zip(reference.ids, rows, reference.golds, strict=True):
        if gold != result.golds[row]:
            raise UserError(
                f"{pair} have different test items: gold of '{item}' is {gold!r} and {result.golds[row]!r}; "
                f"{remedy}"
            )
    return replace(
        result,
        ids=reference.ids,
        correct=[result.correct[row] for row in rows],
        levels=[result.levels[row] for row in rows],
        golds=reference.golds,
    )


def mean_accuracies(correct: np.ndarray, seed: int, part: str | int) -> tuple[list[SeedMean], np.ndarray]:
    """Mean of every policy with its interval, and the bootstrap's draws [resamples, policies]."""
    rng = np.random.default_rng(derive_seed(seed, "bootstrap over seeds", part))
    draws, n = hierarchical_bootstrap(correct, rng), correct.shape[2]
    means = []
    for of_policy, column in zip(correct, draws.T, strict=True):
        constant = of_policy.all() or not of_policy.any()
        ci95 = wilson_interval(int(of_policy[0].sum()), n) if constant else percentiles(column)
        means.append(SeedMean(float(of_policy.mean()), ci95, n))
    return means, draws


def compare_seeds(experiment: Experiment) -> list[SeedPair]:
    """Every pair of policies, in order; both tests are corrected by Holm over all pairs."""
    pairs = []
    couples = list(combinations(range(len(experiment.policies)), 2))
    for a, b in couples:
        right_a, right_b = experiment.correct[a], experiment.correct[b]
        differences = right_b.astype(int) - right_a
        both, p_items = crossed_test(differences), sign_flip_test(differences)
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
                p_mcnemar=[mcnemar(x, y).p_value for x, y in zip(right_a, right_b, strict=True)],
                detectable=both.detectable(ALPHA / len(couples), POWER),
            )
        )
    corrected = holm([pair.p_value for pair in pairs]), holm([pair.p_items for pair in pairs])
    return [replace(pair, p_holm=p, p_items_holm=q) for pair, p, q in zip(pairs, *corrected, strict=True)]


def seed_summary_rows(experiment: Experiment) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows and columns of summary.csv over seeds: one row per policy.

    ``accuracy`` and ``accuracy_level_<n>`` have the ends of their intervals beside them, ``seed_sd`` is the
    standard deviation of the seeds' accuracies; all other rates are plain means over the seeds.
    """
    levels = list(experiment.level_means)
    columns = ["policy", "dataset", "split", "n", "seeds", "mean_tokens"]
    for name in ("accuracy", *(f"accuracy_level_{level}" for level in levels)):
        columns += [name, f"{name}_low", f"{name}_high"]
    columns.append("seed_sd")
    rows = []
    others: set[str] = set()
    for index, (policy, results) in enumerate(experiment.results.items()):
        single, names = summary_rows(results)
        rates = [name for name in names if f"{name}_low" in names and name != "accuracy"]
        others |= set(rates)
        row = {
            "policy": policy,
            "dataset": single[0]["dataset"],
            "split": single[0]["split"],
            "n": len(experiment.ids),
            "seeds": " ".join(map(str, experiment.seeds)),
            "seed_sd": float(experiment.accuracies[index].std(ddof=1)),
        }
        for name in ("mean_tokens", *rates):
            values = [each[name] for each in single if each[name] != ""]
            row[name] = float(np.mean(values)) if len(values) == len(single) else ""
        means = {"accuracy": experiment.means[index]}
        means |= {f"accuracy_level_{level}": experiment.level_means[level][index] for level in levels}
        for name, mean in means.items():
            row |= {name: mean.value, f"{name}_low": mean.ci95[0], f"{name}_high": mean.ci95[1]}
        rows.append(row)
    return rows, [*columns, *sorted(others)]


def by_seed_rows(experiment: Experiment) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows and columns of by_seed.csv: summary.csv's row of every policy in every run, Wilson intervals."""
    rows, columns = summary_rows([each for results in experiment.results.values() for each in results])
    where = list(zip(experiment.runs, experiment.seeds, strict=True)) * len(experiment.results)
    rows = [row | {"run": run, "seed": seed} for row, (run, seed) in zip(rows, where, strict=True)]
    return rows, ["policy", "run", "seed", *columns[1:]]


def pair_rows(pairs: Sequence[SeedPair]) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows and columns of pairs.csv: every number of every pair, blank where there is none."""
    columns = ["a", "b", "difference", "low", "high", "p", "p_holm", "bootstrap_low", "bootstrap_high"]
    columns += ["p_items", "p_items_holm", "seeds_low", "seeds_high", "p_seeds", "p_mcnemar", "detectable"]
    rows = []
    for pair in pairs:
        seeds = pair.over_seeds
        values = (
            *(pair.a, pair.b, pair.difference, *pair.ci95, pair.p_value, pair.p_holm, *pair.bootstrap95),
            *(pair.p_items, pair.p_items_holm),
            *((*seeds.ci95, seeds.p_value) if seeds else ("", "", "")),
            " ".join(f"{p:.6g}" for p in pair.p_mcnemar),
            "" if pair.detectable is None else pair.detectable,
        )
        rows.append(dict(zip(columns, values, strict=True)))
    return rows, columns
