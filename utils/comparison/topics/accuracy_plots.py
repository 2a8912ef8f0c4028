"""Figures of the comparison, drawn to the same bytes for the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from utils.comparison.over_seeds import Experiment, SeedMean
from utils.comparison.paired import PolicyResult
from utils.documents.figures import drawing, legend, styles_of
from utils.statistics.accuracy_tests import rate


def plot_comparison(results: Sequence[PolicyResult], path: str | Path) -> None:
    """Accuracy of every policy with Wilson 95 % intervals, overall and, where levels exist, by level.

    Equal numbers give equal bytes.
    """
    levels = sorted({level for result in results for level in result.levels if level is not None})
    _draw(
        path,
        len(results),
        lambda axis: _draw_overall(axis, results),
        (lambda axis: _draw_levels(axis, results, levels)) if levels else None,
    )


def plot_seeds(experiment: Experiment, path: str | Path) -> None:
    """Mean accuracy of every policy with its 95 % interval, and a small point for every seed.

    Overall and, where levels exist, by level; equal numbers give equal bytes.
    """
    _draw(
        path,
        len(experiment.policies),
        lambda axis: _draw_seeds_overall(axis, experiment),
        (lambda axis: _draw_seeds_levels(axis, experiment)) if experiment.level_means else None,
    )


def _draw(path: str | Path, policies: int, overall: Callable, by_level: Callable | None) -> None:
    """Write a PNG with a panel over all items and, where ``by_level`` draws one, a panel by level."""
    height = max(3.6, 1.5 + 0.42 * policies)
    widths = (1, 1.35) if by_level else (1,)
    with drawing(path, (11 if by_level else 6, height), widths) as (figure, axes):
        overall(axes[0])
        if by_level:
            by_level(axes[1])
            if policies > 1:
                legend(figure, *axes[1].get_legend_handles_labels())


def _draw_overall(axis, results: Sequence[PolicyResult]) -> None:
    styles = styles_of([result.name for result in results])
    for row, result in enumerate(results):
        value, below, above, _ = _percent(result.correct)
        style = styles[result.name]
        axis.errorbar(
            value,
            row,
            xerr=[[below], [above]],
            fmt=style.marker,
            color=style.colour,
            markersize=7,
            capsize=4,
            linewidth=2,
        )
        axis.annotate(
            f"{value:.1f} %", (value, row), (0, 8), textcoords="offset points", ha="center", fontsize=9
        )
    _finish_overall(axis, [result.name for result in results], "accuracy (%), 95 % Wilson interval")


def _draw_seeds_overall(axis, experiment: Experiment) -> None:
    styles = styles_of(experiment.policies)
    for row, (name, mean) in enumerate(zip(experiment.policies, experiment.means, strict=True)):
        value, below, above = _whiskers(mean)
        style = styles[name]
        accuracies = 100 * experiment.accuracies[row]
        beside = [row + 0.22] * len(accuracies)
        axis.scatter(accuracies, beside, s=16, color=style.colour, alpha=0.7, linewidths=0)
        axis.errorbar(
            value,
            row,
            xerr=[[below], [above]],
            fmt=style.marker,
            color=style.colour,
            markersize=7,
            capsize=4,
            linewidth=2,
        )
        axis.annotate(
            f"{value:.1f} %", (value, row), (0, 8), textcoords="offset points", ha="center", fontsize=9
        )
    label = f"mean accuracy (%) of {len(experiment.seeds)} seeds (dots), 95 % interval"
    _finish_overall(axis, experiment.policies, label)


def _finish_overall(axis, names: Sequence[str], label: str) -> None:
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.75)
    axis.set_xlim(-6, 106)  # room for the labels of 0 and 100 %
    axis.set_xlabel(label)
    axis.set_title("All items")
    axis.grid(axis="x")


def _draw_levels(axis, results: Sequence[PolicyResult], levels: Sequence[int]) -> None:
    spread = min(0.16, 0.66 / len(results))
    styles = styles_of([result.name for result in results])
    for index, result in enumerate(results):
        shift = (index - (len(results) - 1) / 2) * spread
        points = []
        for position, level in enumerate(levels):
            correct = [c for c, at in zip(result.correct, result.levels, strict=True) if at == level]
            if correct:
                points.append((position + shift, *_percent(correct)[:3]))
        x, value, below, above = zip(*points, strict=True) if points else ((), (), (), ())
        axis.errorbar(
            x,
            value,
            yerr=[below, above],
            fmt=styles[result.name].marker,
            color=styles[result.name].colour,
            markersize=5.5,
            capsize=2.5,
            linewidth=1.5,
            label=result.name,
        )
    counts = [sum(at == level for at in results[0].levels) for level in levels]
    _finish_levels(axis, levels, counts)


def _draw_seeds_levels(axis, experiment: Experiment) -> None:
    levels, names = list(experiment.level_means), experiment.policies
    spread = min(0.2, 0.75 / len(names))
    by_seed = [100 * experiment.level_accuracies(level) for level in levels]
    styles = styles_of(names)
    for index, name in enumerate(names):
        shift = (index - (len(names) - 1) / 2) * spread
        places = [position + shift for position in range(len(levels))]
        value, below, above = zip(
            *(_whiskers(means[index]) for means in experiment.level_means.values()), strict=True
        )
        for place, accuracies in zip(places, by_seed, strict=True):
            beside = [place + 0.32 * spread] * len(experiment.seeds)
            axis.scatter(beside, accuracies[index], s=9, color=styles[name].colour, alpha=0.7, linewidths=0)
        axis.errorbar(
            places,
            value,
            yerr=[below, above],
            fmt=styles[name].marker,
            color=styles[name].colour,
            markersize=5,
            capsize=2.5,
            linewidth=1.5,
            label=name,
        )
    counts = [means[0].n for means in experiment.level_means.values()]
    _finish_levels(axis, levels, counts)


def _finish_levels(axis, levels: Sequence[int], counts: Sequence[int]) -> None:
    labels = [f"level {level}\nn = {count}" for level, count in zip(levels, counts, strict=True)]
    axis.set_xticks(range(len(levels)), labels)
    axis.set_xlim(-0.5, len(levels) - 0.5)
    axis.set_ylim(-3, 103)
    axis.set_ylabel("accuracy (%)")
    axis.set_title("By level of difficulty")
    axis.grid(axis="y")


def _whiskers(mean: SeedMean) -> tuple[float, float, float]:
    """Mean accuracy in per cent and the interval's lengths below and above it."""
    low, high = mean.ci95
    return 100 * mean.value, 100 * max(0.0, mean.value - low), 100 * max(0.0, high - mean.value)


def _percent(correct: Sequence[bool]) -> tuple[float, float, float, int]:
    """Accuracy in per cent, the interval's lengths below and above it, and the number of items."""
    share = rate(sum(correct), len(correct))
    value, (low, high) = share["value"], share["ci95"]
    return 100 * value, 100 * max(0.0, value - low), 100 * max(0.0, high - value), share["n"]
