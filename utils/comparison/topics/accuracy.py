"""Accuracies: the first table and figure of the report, and what 10 measured as columns of summary.csv."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from utils.comparison.estimates import columns_of, estimate_of, percent_cell
from utils.comparison.paired import PolicyResult
from utils.comparison.topic import Comparison, Topic
from utils.comparison.topics.levels import Levels, level_blocks, levels_of
from utils.comparison.topics.method_cost import Costs, costs_of, mean_count
from utils.documents.document import Figure, Line, Number, Paragraph, Section, Table
from utils.documents.figures import drawing, legend, mark
from utils.documents.text import interval, p_cell, percent, plural, points, points_interval
from utils.frame.pipeline import policy_order

FIGURE = "comparison.png"
BASELINE = "sft"
_SCORES = {
    "program_accuracy": "program",
    "tolerant_accuracy": "tolerant",
    "flexible_accuracy": "flexible",
    "format_validity": "valid format",
    "truncation_rate": "cut off",
}


def topic(comparison: Comparison) -> Topic:
    """Accuracies of policies as they are, or means over seeds with the table that a README quotes."""
    levels, seeds = levels_of(comparison), comparison.experiment
    if seeds:
        costs = costs_of(comparison.trained)
        table = [quotable_table(comparison, costs), _note(comparison, costs)]
        by_level = level_blocks(comparison, "method")
        alternative = f"Mean accuracy of every policy over {len(seeds.seeds)} seeds with 95 % intervals"
    else:
        table = [_table(comparison), *_of_reports(comparison)]
        by_level = level_blocks(comparison, "policy")
        alternative = "Accuracy of every policy with 95 % intervals"
    return Topic(
        sections=[
            # The page has these tables in a form of its own.
            Section("Accuracy", table, on_page=bool(seeds)),
            Section(
                "Accuracy by level" if levels.levels else "Accuracy as a figure",
                [*by_level, Figure(FIGURE, alternative)],
            ),
        ],
        columns=_mean_columns(comparison) if seeds else _columns(comparison),
        by_run=_columns_by_run(comparison) if seeds else {},
        files={FIGURE: partial(plot_accuracies, comparison, levels)},
    )


# ------------------------------------------------------------------------------------------- tables


def _table(comparison: Comparison) -> Table:
    results = [result for (result,) in comparison.results.values()]
    baseline = _baseline(comparison)
    scores = [key for key in _SCORES if any(key in result.metrics for result in results)]
    rows = []
    for result in results:
        share, tokens = result.accuracy, (result.metrics.get("response_tokens") or {}).get("mean")
        row = [result.name, str(share.n), Number(percent(share.value), share.value)]
        row.append(interval(share.ci95))
        row += difference_cells(comparison, baseline, result.name) if comparison.pairs else []
        row += [percent(result.metrics[key]["value"]) if key in result.metrics else "" for key in scores]
        rows.append([*row, "" if tokens is None else f"{tokens:.1f}"])
    heads = ["policy", "n", "accuracy", "95 % interval"]
    heads += _difference_heads(baseline) if comparison.pairs else []
    heads += [*map(_SCORES.get, scores), "mean tokens"]
    return Table(heads, _with_failed(comparison, rows, place=2))


def _of_reports(comparison: Comparison) -> list[Paragraph]:
    """What the intervals count, where items share reports."""
    if not comparison.clusters:
        return []
    return [
        Paragraph(
            f"The items come from {comparison.clusters} reports. Items of one report are not independent, so "
            "intervals and tests count reports, not items; those that take the items as independent stand "
            "beside them in summary.csv and pairs.csv."
        )
    ]


def quotable_table(comparison: Comparison, costs: Costs) -> Table:
    """Accuracies by seed, their mean, the difference from SFT, and the cost where that of any is known."""
    seeds = ", ".join(map(str, comparison.experiment.seeds))
    baseline = _baseline(comparison)
    heads = ["method", f"accuracy (%) with seed {seeds}", "mean (95 % interval)"]
    if comparison.pairs:
        heads += _difference_heads(baseline)
    known = _is_known(costs)
    if known:
        heads += ["completions", "trained tokens (k)"]
    rows = []
    for name, mean in comparison.accuracies.items():
        row = [name, ", ".join(f"{100 * value:.1f}" for value in mean.by_run), percent_cell(mean)]
        if comparison.pairs:
            row += difference_cells(comparison, baseline, name)
        if known:
            row.append(_count(mean_count(costs[name], "sampled_completions")))
            row.append(_count(mean_count(costs[name], "trained_tokens"), 1000))
        rows.append(row)
    return Table(heads, _with_failed(comparison, rows, place=1))


def _is_known(costs: Costs) -> bool:
    return any(not cost.problem for of_policy in costs.values() for cost in of_policy)


def _count(mean: float | None, unit: int = 1) -> Number:
    return Number("–" if mean is None else f"{mean / unit:,.0f}", mean)


def _baseline(comparison: Comparison) -> str:
    """The policy that the others are set against: SFT, or else the first."""
    return BASELINE if BASELINE in comparison.results else comparison.policies[0]


def _difference_heads(baseline: str) -> list[str]:
    return [f"over {baseline}, points (95 % interval)", "p", "detectable"]


def difference_cells(comparison: Comparison, base: str, policy: str) -> list[Line]:
    """Cells: a policy's difference from another with its interval, its corrected p-value, and the smallest
    difference that the test could find.
    """
    pair, sign = comparison.test_of(base, policy)
    if pair is None:
        return ["–", "–", "–"]
    difference, ends = sign * pair.difference, sorted(sign * end for end in pair.ci95)
    could = "none" if pair.detectable is None else f"{100 * pair.detectable:.1f}"
    return [Number(f"{points(difference)} ({points_interval(ends)})", difference), p_cell(pair.p_holm), could]


def _note(comparison: Comparison, costs: Costs) -> Paragraph:
    note = (
        f"{next(iter(comparison.accuracies.values())).n} items. The interval of a mean is a percentile "
        f"interval of a hierarchical bootstrap: seeds and {'reports' if comparison.clusters else 'items'} "
        "are both drawn anew."
    )
    if comparison.clusters:
        note += (
            f" The items come from {comparison.clusters} reports; items of one report are not independent, "
            "so the tests, too, count reports."
        )
    if comparison.pairs:
        note += (
            " Interval and p of a difference are those of the test over seeds and items (would other seeds "
            f"and other items show it?), p corrected by Holm for the "
            f"{plural(len(comparison.pairs), 'pair')} of this comparison."
        )
    if _is_known(costs):
        note += (
            " Completions and trained tokens (thousands; means over the seeds) are what a method took after "
            "SFT; SFT's row is its own training."
        )
    return Paragraph(note)


def _with_failed(comparison: Comparison, rows: list[list[Line]], place: int) -> list[list[Line]]:
    """The rows, with one for every policy that failed, the reason in the column at ``place``."""
    for name, reason in comparison.failed.items():
        row = [name, *[""] * (len(rows[0]) - 1)]
        rows.append([*row[:place], f"– failed: {reason}", *row[place + 1 :]])
    return sorted(rows, key=lambda row: policy_order(row[0])) if comparison.failed else rows


# ------------------------------------------------------------------------------------------ columns


def _rates(comparison: Comparison) -> list[str]:
    """The rates besides the accuracy that any evaluation has."""
    every = [result for of_runs in comparison.results.values() for result in of_runs]
    found = {key for result in every for key, value in result.metrics.items() if _is_rate(value)}
    return sorted(found - {"accuracy"})


def _is_rate(value: Any) -> bool:
    return isinstance(value, dict) and set(value) - {"clusters", "plain95"} == {"value", "ci95", "n"}


def _row(result: PolicyResult, rates: Sequence[str]) -> dict[str, Any]:
    """What one evaluation says: every rate with the ends of its interval, blank where it has none."""
    metrics = result.metrics
    found = {name: estimate_of(metrics[name]) if name in metrics else None for name in ("accuracy", *rates)}
    plain95 = metrics["accuracy"].get("plain95", ("", ""))
    return {
        "policy": result.name,
        "dataset": metrics["dataset"],
        "split": metrics["split"],
        "n": len(result.items),
        "correct": int(result.items["correct"].sum()),
        "reports": metrics["accuracy"].get("clusters", ""),
        "missing": metrics["missing"]["count"],
        "mean_tokens": (metrics.get("response_tokens") or {}).get("mean", ""),
        **columns_of(found),
        "accuracy_plain_low": plain95[0],
        "accuracy_plain_high": plain95[1],
    }


def _columns(comparison: Comparison) -> dict[str, dict[str, Any]]:
    rates = _rates(comparison)
    return {name: _row(result, rates) for name, (result,) in comparison.results.items()}


def _columns_by_run(comparison: Comparison) -> dict[str, list[dict[str, Any]]]:
    rates, experiment = _rates(comparison), comparison.experiment
    where = list(zip(experiment.runs, experiment.seeds, strict=True))
    return {
        name: [
            {"policy": name, "run": run, "seed": seed} | _row(result, rates)
            for result, (run, seed) in zip(of_runs, where, strict=True)
        ]
        for name, of_runs in comparison.results.items()
    }


def _mean_columns(comparison: Comparison) -> dict[str, dict[str, Any]]:
    """The mean accuracy with its interval and the seeds' spread; all other rates are plain means."""
    rates, found = _rates(comparison), {}
    for name, mean in comparison.accuracies.items():
        rows = [_row(result, rates) for result in comparison.results[name]]
        means = {key: [row[key] for row in rows] for key in ("mean_tokens", *rates)}
        means = {key: "" if "" in of_key else float(np.mean(of_key)) for key, of_key in means.items()}
        found[name] = {
            **{key: rows[0][key] for key in ("policy", "dataset", "split", "n", "reports")},
            "seeds": " ".join(map(str, comparison.experiment.seeds)),
            "mean_tokens": means.pop("mean_tokens"),
            **columns_of({"accuracy": mean}),
            "seed_sd": float(np.std(mean.by_run, ddof=1)),
            **means,
        }
    return found


# ------------------------------------------------------------------------------------------- figure


def plot_accuracies(comparison: Comparison, levels: Levels, path: Path) -> None:
    """Accuracies with 95 % intervals and a dot for every seed, overall and, where levels exist, by level."""
    count = len(comparison.policies)
    size = (11 if levels.levels else 6, max(3.6, 1.5 + 0.42 * count))
    with drawing(path, size, (1, 1.35) if levels.levels else (1,)) as (figure, axes):
        _draw_overall(axes[0], comparison)
        if levels.levels:
            _draw_levels(axes[1], comparison, levels)
            if count > 1:
                legend(figure, *axes[1].get_legend_handles_labels())


def _draw_overall(axis, comparison: Comparison) -> None:
    for row, (name, share) in enumerate(comparison.accuracies.items()):
        value, style = 100 * share.value, comparison.styles[name]
        if comparison.experiment:
            dots = [100 * each for each in share.by_run]
            axis.scatter(dots, [row + 0.22] * len(dots), s=16, color=style.colour, alpha=0.7, linewidths=0)
        mark(axis, value, row, style, xerr=share.whiskers(100), markersize=7)
        label = {"textcoords": "offset points", "ha": "center", "fontsize": 9}
        axis.annotate(f"{value:.1f} %", (value, row), (0, 8), **label)
    seeds = comparison.experiment and f"mean accuracy (%) of {comparison.runs} seeds (dots), 95 % interval"
    axis.set_yticks(range(len(comparison.policies)), comparison.policies)
    axis.set(
        ylim=(len(comparison.policies) - 0.4, -0.75),
        xlim=(-6, 106),  # room for the labels of 0 and 100 %
        xlabel=seeds or f"accuracy (%), 95 % {comparison.wilson}",
        title="All items",
    )
    axis.grid(axis="x")


def _draw_levels(axis, comparison: Comparison, levels: Levels) -> None:
    names, seeds = comparison.policies, comparison.experiment is not None
    spread = min(0.2, 0.75 / len(names)) if seeds else min(0.16, 0.66 / len(names))
    for index, name in enumerate(names):
        shift, style = (index - (len(names) - 1) / 2) * spread, comparison.styles[name]
        shown = [
            (place + shift, levels.parts[level][name])
            for place, level in enumerate(levels.levels)
            if name in levels.parts[level]
        ]
        for x, share in shown if seeds else ():
            dots = [100 * each for each in share.by_run]
            beside = [x + 0.32 * spread] * len(dots)
            axis.scatter(beside, dots, s=9, color=style.colour, alpha=0.7, linewidths=0)
        whiskers = [share.whiskers(100) for _, share in shown]
        mark(
            axis,
            [x for x, _ in shown],
            [100 * share.value for _, share in shown],
            style,
            yerr=[[each[end][0] for each in whiskers] for end in (0, 1)],
            markersize=5 if seeds else 5.5,
            capsize=2.5,
            linewidth=1.5,
            label=name,
        )
    labels = [f"level {level}\nn = {levels.count(level)}" for level in levels.levels]
    axis.set_xticks(range(len(labels)), labels)
    axis.set(xlim=(-0.5, len(labels) - 0.5), ylim=(-3, 103), ylabel="accuracy (%)")
    axis.set_title("By level of difficulty")
    axis.grid(axis="y")
