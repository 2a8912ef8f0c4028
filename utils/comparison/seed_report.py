"""report.md over several seeds: what is shown of the methods, and what of the policies trained here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from utils.comparison.over_seeds import Experiment, SeedMean, SeedPair
from utils.comparison.paired import ALPHA, POWER
from utils.comparison.report import with_failed_rows
from utils.comparison.seed_runs import SeedRuns
from utils.comparison.topics.cost import Costs, mean_count
from utils.comparison.topics.levels import Levels, level_table
from utils.documents.text import interval, listed, markdown_table, p_text, percent

BASELINE = "sft"
SPELT_OUT = 2  # findings about the policies trained here that get a sentence each; more share one


def render_seed_report(
    experiment: Experiment,
    pairs: Sequence[SeedPair],
    runs: SeedRuns,
    levels: Levels,
    figure: str,
    costs: Costs | None = None,
    cost_section: str = "",
) -> str:
    """The Markdown report of a comparison over seeds.

    Args:
        experiment, pairs, runs: what is compared.
        levels: the mean accuracies by level.
        figure: the plot's file name beside the report.
        costs: policy -> cost in each run.
        cost_section: the sections on cost and training.
    """
    first = next(iter(experiment.results.values()))[0].metrics
    count = len(experiment.seeds)
    parts = [
        f"# Comparison over {count} seeds on {first['dataset']}, {first['split']} split",
        seed_conclusions(experiment, pairs),
        "## Accuracy",
        accuracy_table(experiment, pairs, costs, runs.failed),
        _accuracy_note(experiment, pairs, costs),
        level_table(levels, experiment.policies, "method"),
        f"![Mean accuracy of every policy over {count} seeds with 95 % intervals]({figure})",
        cost_section,
    ]
    if pairs:
        parts += ["## Tests", _pair_table(pairs), _test_note(experiment, pairs)]
        parts += ["### Each seed alone", _seed_table(experiment, pairs)]
    parts += ["## Runs", _runs(experiment, runs)]
    return "\n\n".join(part for part in parts if part) + "\n"


def seed_conclusions(experiment: Experiment, pairs: Sequence[SeedPair]) -> str:
    """One sentence per difference that a corrected test supports, saying of what it holds."""
    if not pairs:
        name = experiment.policies[0]
        return f"Only one policy, {name}, was evaluated in every run: there is nothing to compare it with."
    lines = [f"- {_finding(experiment, pair)}" for pair in pairs if pair.significant]
    here = [pair for pair in pairs if pair.significant_here and not pair.significant]
    rest = len(pairs) - len(lines) - len(here)
    if len(here) > SPELT_OUT:
        lines.append(f"- {_findings_here(here)}")
    else:
        lines += [f"- {_finding_here(experiment, pair)}" for pair in here]
    at_level = f"at the {ALPHA:g} level after Holm's correction"
    if rest == len(pairs):
        lines.append(f"- The tests support no difference between the policies {at_level}.")
    elif rest:
        lines.append(
            f"- For the other {rest} of {len(pairs)} pairs the tests support no difference {at_level}."
        )
    return "\n".join(lines)


def _finding(experiment: Experiment, pair: SeedPair) -> str:
    better, worse, points, ends = _best_first(pair)
    return (
        f"**{better}** answers more items correctly than **{worse}**: {_means_of(experiment, better, worse)} "
        f"on average over {len(experiment.seeds)} seeds, a difference of {points} points (95 % interval "
        f"{ends}; test over seeds and items, Holm-corrected p {p_text(pair.p_holm)})."
    )


def _finding_here(experiment: Experiment, pair: SeedPair) -> str:
    better, worse, points, ends = _best_first(pair)
    return (
        f"The policies trained here as **{better}** answer more items correctly than those trained as "
        f"**{worse}**: {_means_of(experiment, better, worse)}, a difference of {points} points (exact test "
        f"over items, Holm-corrected p {p_text(pair.p_items_holm)}). That other seeds would show it too is "
        f"not supported: 95 % interval {ends}, Holm-corrected p {p_text(pair.p_holm)}."
    )


def _findings_here(pairs: Sequence[SeedPair]) -> str:
    found = [
        f"**{better}** over **{worse}** by {points}" for better, worse, points, _ in map(_best_first, pairs)
    ]
    return (
        f"For {len(pairs)} pairs only the policies trained here are shown to differ (exact test over items, "
        f"largest Holm-corrected p {p_text(max(p.p_items_holm for p in pairs))}): {listed(found)} points. "
        "That other seeds would show it too is not supported."
    )


def _best_first(pair: SeedPair) -> tuple[str, str, str, str]:
    """Better policy, worse policy, points between them, and the interval of that difference."""
    low, high = pair.ci95 if pair.difference > 0 else (-pair.ci95[1], -pair.ci95[0])
    names = (pair.b, pair.a) if pair.difference > 0 else (pair.a, pair.b)
    return *names, f"{100 * abs(pair.difference):.1f}", f"{100 * low:.1f} to {100 * high:.1f}"


def _means_of(experiment: Experiment, better: str, worse: str) -> str:
    value = {name: mean.value for name, mean in zip(experiment.policies, experiment.means, strict=True)}
    return f"{percent(value[better])} against {percent(value[worse])}"


def accuracy_table(
    experiment: Experiment,
    pairs: Sequence[SeedPair],
    costs: Costs | None = None,
    failed: Mapping[str, str] | None = None,
) -> str:
    """The table that a README quotes: accuracies by seed, their mean, the difference from SFT, and the cost.

    Cost has no columns where that of no policy is known.
    """
    baseline = _baseline(experiment)
    seeds = ", ".join(map(str, experiment.seeds))
    heads = ["method", f"accuracy (%) with seed {seeds}", "mean (95 % interval)"]
    if pairs:
        heads += [f"over {baseline}, points (95 % interval)", "p"]
    counted = _is_known(costs)
    if counted:
        heads += ["completions", "trained tokens (k)"]
    rows = []
    for name, by_seed, mean in zip(experiment.policies, experiment.accuracies, experiment.means, strict=True):
        row = [name, ", ".join(f"{100 * value:.1f}" for value in by_seed), _mean(mean)]
        if pairs:
            row += _over(baseline, name, pairs)
        if counted:
            row.append(_count(mean_count(costs[name], "sampled_completions")))
            row.append(_count(mean_count(costs[name], "trained_tokens"), 1000))
        rows.append(row)
    return markdown_table(heads, with_failed_rows(rows, failed or {}, place=1))


def _is_known(costs: Costs | None) -> bool:
    return any(not cost.problem for of_policy in (costs or {}).values() for cost in of_policy)


def _count(mean: float | None, unit: int = 1) -> str:
    return "–" if mean is None else f"{mean / unit:,.0f}"


def _baseline(experiment: Experiment) -> str:
    return BASELINE if BASELINE in experiment.policies else experiment.policies[0]


def _over(baseline: str, name: str, pairs: Sequence[SeedPair]) -> list[str]:
    """Cells: difference from the baseline with its interval, and its corrected p-value."""
    for pair in pairs:
        if {pair.a, pair.b} == {baseline, name}:
            sign = 1 if pair.b == name else -1
            low, high = sorted(sign * end for end in pair.ci95)
            difference = f"{_points(sign * pair.difference)} ({_ends((low, high))})"
            return [difference, _p(pair.p_holm)]
    return ["–", "–"]


def _accuracy_note(experiment: Experiment, pairs: Sequence[SeedPair], costs: Costs | None) -> str:
    note = (
        f"{len(experiment.ids)} items. The interval of a mean is a percentile interval of a hierarchical "
        "bootstrap: seeds and items are both drawn anew."
    )
    if pairs:
        note += (
            " Interval and p of a difference are those of the test over seeds and items (would other seeds "
            f"and other items show it?), p corrected by Holm for the {_pairs(pairs)} of this comparison."
        )
    if _is_known(costs):
        note += (
            " Completions and trained tokens (thousands; means over the seeds) are what a method took after "
            "SFT; SFT's row is its own training."
        )
    return note


def _pair_table(pairs: Sequence[SeedPair]) -> str:
    heads = [
        "pair",
        "difference",
        "seeds and items: 95 % interval",
        "p (Holm p)",
        "items only: p (Holm p)",
        "seeds only: 95 % interval",
        "p",
        "bootstrap 95 % interval",
        "detectable",
    ]
    rows = []
    for pair in pairs:
        seeds = pair.over_seeds
        rows.append(
            [
                f"{pair.a} → {pair.b}",
                _points(pair.difference),
                _ends(pair.ci95),
                f"{_p(pair.p_value)} ({_p(pair.p_holm)}{' *' if pair.significant else ''})",
                f"{_p(pair.p_items)} ({_p(pair.p_items_holm)}{' *' if pair.significant_here else ''})",
                _ends(seeds.ci95) if seeds else "no spread",
                _p(seeds.p_value) if seeds else "–",
                _ends(pair.bootstrap95),
                "–" if pair.detectable is None else f"{100 * pair.detectable:.1f}",
            ]
        )
    return markdown_table(heads, rows)


def _test_note(experiment: Experiment, pairs: Sequence[SeedPair]) -> str:
    count = len(experiment.seeds)
    return (
        "Differences are in percentage points, second policy minus first. Three questions, three tests:\n\n"
        "- *Seeds and items*: would the difference be there with other training seeds and other items? A t "
        "test for crossed seeds and items (Hillis' degrees of freedom); its p is never stated below that of "
        "the items alone. Conclusions about methods rest on this test. The bootstrap interval "
        f"draws seeds and items anew, and is too narrow where {count} seeds differ much.\n"
        "- *Items only*: do these trained policies differ, averaged over the seeds, on other items? An exact "
        "sign-flip test; it says nothing about other seeds.\n"
        f"- *Seeds only*: would other seeds show the difference on these items? A paired t test over {count} "
        f"seeds (degrees of freedom {count - 1}), not corrected for the number of pairs; with few seeds it "
        "finds only differences that are large beside their spread.\n\n"
        f"Holm p corrects for the {_pairs(pairs)} within a test; * marks those below {ALPHA:g}. "
        "*Detectable* is the smallest true difference that the test over seeds and items would find with "
        f"{100 * POWER:.0f} % power at level {ALPHA:g} / {len(pairs)}, if the spread is as it was seen here."
    )


def _seed_table(experiment: Experiment, pairs: Sequence[SeedPair]) -> str:
    """Difference and exact McNemar p of every pair within each seed."""
    accuracy = dict(zip(experiment.policies, experiment.accuracies, strict=True))
    rows = [
        [
            f"{pair.a} → {pair.b}",
            *(
                f"{_points(b - a)} (p {p_text(p)})"
                for a, b, p in zip(accuracy[pair.a], accuracy[pair.b], pair.p_mcnemar, strict=True)
            ),
        ]
        for pair in pairs
    ]
    heads = ["difference (exact McNemar p)", *(f"seed {seed}" for seed in experiment.seeds)]
    return markdown_table(heads, rows)


def _runs(experiment: Experiment, runs: SeedRuns) -> str:
    lines = [f"- seed {seed}: `{run}`" for seed, run in zip(experiment.seeds, experiment.runs, strict=True)]
    lines += [
        f"- Left out: {policy}, which {', '.join(lacking)} did not evaluate."
        for policy, lacking in runs.left_out.items()
    ]
    lines += [
        f"- Failed, and compared in no run: {policy}: {reason}." for policy, reason in runs.failed.items()
    ]
    if runs.code:
        lines.append(f"- The runs were made by different code: {', '.join(runs.code)}.")
    return "\n".join(lines)


def _pairs(pairs: Sequence[SeedPair]) -> str:
    return f"{len(pairs)} {'pair' if len(pairs) == 1 else 'pairs'}"


def _mean(mean: SeedMean) -> str:
    return f"{percent(mean.value)} ({interval(mean.ci95)})"


def _points(value: float) -> str:
    # Adding zero turns "-0.0" into "+0.0".
    return f"{round(100 * value, 1) + 0.0:+.1f}"


def _ends(ends: tuple[float, float]) -> str:
    return f"{_points(ends[0])} to {_points(ends[1])}"


def _p(value: float) -> str:
    return p_text(value).removeprefix("= ")
