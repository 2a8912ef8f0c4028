"""The figure of a curriculum study: validation during training, and accuracy by level, one row per method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from utils.comparison.topics.cost_plots import draw_curve
from utils.comparison.topics.curricula import Group
from utils.comparison.topics.curves import Curve
from utils.comparison.topics.levels import HELD_OUT, TRAINED, Levels
from utils.documents.figures import PALETTE, Style, drawing, legend
from utils.frame.pipeline import CURRICULA

# A colour and marker per curriculum, the same in every row; random is grey, as SFT is elsewhere.
STYLES = dict(
    zip(
        CURRICULA,
        (Style(PALETTE[colour], mark) for colour, mark in zip((1, 4, 5, 6, 3), "osD^v", strict=True)),
        strict=True,
    )
)
START = Style("#222222", "")
WIDTH = 0.8  # of a level's bars together


def plot_curricula(
    groups: Sequence[Group], curves: Sequence[Curve], levels: Levels, path: str | Path
) -> None:
    """Validation accuracy over sampled completions, and bars of test accuracy by level, for every group.

    A line is the mean over seeds, its band reaches from the lowest seed to the highest; SFT is a dashed
    level. Whiskers are 95 % intervals, dots the seeds. Equal numbers give equal bytes.
    """
    parts = list(levels.shown)
    widths = (1, 1.25) if parts else (1,)
    with drawing(path, (12 if parts else 6.5, 0.6 + 3.9 * len(groups)), widths, len(groups)) as (
        figure,
        axes,
    ):
        shown: dict = {}
        for row, group in enumerate(groups):
            left, *right = axes[row * len(widths) : (row + 1) * len(widths)]
            _draw_training(left, group, curves)
            for axis in right:
                _draw_levels(axis, group, levels)
            for axis in (left, *right):
                handles, names = axis.get_legend_handles_labels()
                shown = dict(zip(names, handles, strict=True)) | shown
        names = [
            *(name for name in CURRICULA if name in shown),
            *(name for name in shown if name not in CURRICULA),
        ]
        legend(figure, [shown[name] for name in names], names)


def _draw_training(axis, group: Group, curves: Sequence[Curve]) -> None:
    of_policy = {curve.policy: curve for curve in curves}
    drawn = []
    for curriculum, policy in group.policies.items():
        if policy in of_policy and of_policy[policy].kind != "level":
            drawn.append(of_policy[policy])
            draw_curve(axis, replace(drawn[-1], policy=curriculum), "val_accuracy", 100, STYLES[curriculum])
    if not drawn:
        axis.text(0.5, 0.5, "no training log", transform=axis.transAxes, ha="center", color="#444444")
    elif start := next((curve for curve in curves if curve.policy == "sft"), None):
        draw_curve(axis, replace(start, policy="sft (start)"), "val_accuracy", 100, START)
    runs = max((len(curve.by_run) for curve in drawn), default=1)
    axis.set_title(f"{group.title}: validation" + (f", mean and range of {runs} seeds" if runs > 1 else ""))
    axis.set_xlabel("sampled completions")
    axis.set_ylabel("validation accuracy (%)")
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.set_xlim(left=0)
    axis.grid()


def _draw_levels(axis, group: Group, levels: Levels) -> None:
    width = WIDTH / len(group.policies)
    for index, (curriculum, policy) in enumerate(group.policies.items()):
        shift = (index - (len(group.policies) - 1) / 2) * width
        style = STYLES[curriculum]
        for place, shares in enumerate(levels.shown.values()):
            if (share := shares.get(policy)) is None:
                continue
            value, (low, high) = 100 * share.value, (100 * end for end in share.ci95)
            x = place + shift
            axis.bar(
                x,
                value,
                width * 0.92,
                color=style.colour,
                alpha=0.75,
                label=curriculum if place == 0 else None,
            )
            whisker = [[max(0.0, value - low)], [max(0.0, high - value)]]
            axis.errorbar(x, value, yerr=whisker, color="#222222", capsize=2.5, linewidth=1.2)
            if len(share.by_seed) > 1:
                dots = [100 * each for each in share.by_seed]
                axis.scatter(
                    [x + 0.3 * width] * len(dots), dots, s=8, color="#222222", linewidths=0, zorder=3
                )
    counts = [max(share.n for share in shares.values()) for shares in levels.shown.values()]
    labels = [
        f"{levels.title(part).replace(', ', chr(10)).replace(' levels', chr(10) + 'levels')}\nn = {count}"
        for part, count in zip(levels.shown, counts, strict=True)
    ]
    axis.set_xticks(range(len(labels)), labels)
    if groups := [place for place, part in enumerate(levels.shown) if part in (TRAINED, HELD_OUT)]:
        axis.axvline(groups[0] - 0.5, color="#444444", linewidth=0.8)
    axis.set_xlim(-0.5, len(labels) - 0.5)
    axis.set_ylim(0, 103)
    axis.set_ylabel("test accuracy (%), 95 % interval")
    axis.set_title(f"{group.title}: test accuracy by level")
    axis.grid(axis="y")
