"""Figures of the comparison, drawn to the same bytes for the same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from utils.common import atomic_path
from utils.evaluation.comparison import PolicyResult
from utils.evaluation.statistics import rate

# Okabe and Ito's palette, told apart by colour-blind readers; black is left for text and axes.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#5B5B5B")
MARKERS = "osD^vPX<"


def plot_comparison(results: Sequence[PolicyResult], path: str | Path) -> None:
    """Accuracy of every policy with Wilson 95 % intervals, overall and, where levels exist, by level.

    The PNG carries no date and no software version in its metadata: equal numbers give equal bytes.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    levels = sorted({level for result in results for level in result.levels if level is not None})
    height = max(3.6, 1.5 + 0.42 * len(results))
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(
            1,
            2 if levels else 1,
            figsize=(11 if levels else 6, height),
            width_ratios=(1, 1.35) if levels else (1,),
            squeeze=False,
            layout="constrained",
        )
        _draw_overall(axes[0, 0], results)
        if levels:
            _draw_levels(axes[0, 1], results, levels)
            if len(results) > 1:
                columns = min(8, len(results))
                handles, names = axes[0, 1].get_legend_handles_labels()
                figure.legend(handles, names, frameon=False, ncols=columns, loc="outside lower center")
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", dpi=150, metadata={"Software": None})
        plt.close(figure)


_STYLE = {
    "font.family": "DejaVu Sans",  # shipped with matplotlib, so the same everywhere
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.edgecolor": "#444444",
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
}


def _draw_overall(axis, results: Sequence[PolicyResult]) -> None:
    for row, result in enumerate(results):
        value, below, above, _ = _percent(result.correct)
        colour = PALETTE[row % len(PALETTE)]
        axis.errorbar(
            value,
            row,
            xerr=[[below], [above]],
            fmt=MARKERS[row % len(MARKERS)],
            color=colour,
            markersize=7,
            capsize=4,
            linewidth=2,
        )
        axis.annotate(
            f"{value:.1f} %", (value, row), (0, 8), textcoords="offset points", ha="center", fontsize=9
        )
    axis.set_yticks(range(len(results)), [result.name for result in results])
    axis.set_ylim(len(results) - 0.4, -0.75)
    axis.set_xlim(-6, 106)  # room for the labels of 0 and 100 %
    axis.set_xlabel("accuracy (%), 95 % Wilson interval")
    axis.set_title("All items")
    axis.grid(axis="x")


def _draw_levels(axis, results: Sequence[PolicyResult], levels: Sequence[int]) -> None:
    spread = min(0.16, 0.66 / len(results))
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
            fmt=MARKERS[index % len(MARKERS)],
            color=PALETTE[index % len(PALETTE)],
            markersize=5.5,
            capsize=2.5,
            linewidth=1.5,
            label=result.name,
        )
    counts = [sum(at == level for at in results[0].levels) for level in levels]
    labels = [f"level {level}\nn = {count}" for level, count in zip(levels, counts, strict=True)]
    axis.set_xticks(range(len(levels)), labels)
    axis.set_xlim(-0.5, len(levels) - 0.5)
    axis.set_ylim(-3, 103)
    axis.set_ylabel("accuracy (%)")
    axis.set_title("By level of difficulty")
    axis.grid(axis="y")


def _percent(correct: Sequence[bool]) -> tuple[float, float, float, int]:
    """Accuracy in per cent, the interval's lengths below and above it, and the number of items."""
    share = rate(sum(correct), len(correct))
    value, (low, high) = share["value"], share["ci95"]
    return 100 * value, 100 * max(0.0, value - low), 100 * max(0.0, high - value), share["n"]
