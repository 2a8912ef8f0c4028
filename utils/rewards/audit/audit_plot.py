"""The picture of a reward audit, drawn to the same bytes for the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from utils.documents.figures import PALETTE, drawing

_BLUE, _ORANGE, _GREY = PALETTE[4], PALETTE[5], PALETTE[1]


def plot_audit(result: dict[str, Any], path: str | Path) -> None:
    """Three panels, a row per component: ranking with 95 % intervals, pair accuracy by level where the data
    have levels, and correlation with length.

    Args:
        result: of `utils.rewards.audit.audit.audit`.
        path: of the PNG, which carries no date and no software version.
    """
    names, levels = list(result["components"]), list(result["levels"])
    widths = [1.5, *([0.32 * len(levels) + 0.2] if levels else []), 1.1]
    size = (3.6 * sum(widths), 1.8 + 0.46 * len(names))
    with drawing(path, size, widths, sharey=True) as (figure, axes):
        _draw_ranking(axes[0], result["components"])
        if levels:
            _draw_levels(axes[1], result["components"], result["levels"])
        _draw_length(axes[-1], result["components"])
        axes[0].set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
        axes[0].set_ylim(len(names) - 0.4, -0.6)
        counts = result["counts"]
        figure.suptitle(
            f"{counts['candidates']} candidates of {counts['prompts']} prompts, "
            f"{100 * counts['right'] / counts['candidates']:.0f} % right; "
            f"{counts['mixed_prompts']} prompts have right and wrong ones ({counts['pairs']} pairs)",
            fontsize=10,
            x=0.01,
            ha="left",
        )


def _draw_ranking(axis, components: dict[str, Any]) -> None:
    series = (
        ("pair_accuracy", "pairs of the same prompt", "o", _BLUE, -0.16),
        ("auroc", "all pairs (AUROC)", "s", _ORANGE, 0.16),
    )
    for key, label, marker, colour, shift in series:
        _draw_points(axis, [figures[key] for figures in components.values()], label, marker, colour, shift)
    for row, figures in enumerate(components.values()):
        if figures["pair_accuracy"]["value"] is None:
            axis.text(0.02, row, figures["pair_accuracy"]["reason"], color=_GREY, fontsize=8, va="center")
    axis.axvline(0.5, color=_GREY, linewidth=1, linestyle="--")
    axis.set_xlim(-0.03, 1.03)
    axis.set_xlabel("share of pairs with the right answer above (0.5: chance)")
    axis.set_title("Ranks right above wrong?")
    _finish(axis, len(components))


def _draw_levels(axis, components: dict[str, Any], levels: dict[str, Any]) -> None:
    from matplotlib import colormaps

    shades = colormaps["RdBu"]
    for row, figures in enumerate(components.values()):
        for column, level in enumerate(levels):
            figure = figures["levels"][level]["pair_accuracy"]
            value = figure["value"]
            if value is None:
                axis.text(column, row, "–", ha="center", va="center", color=_GREY)
                continue
            # The middle of the scale alone, so that black figures stay readable on it.
            colour = shades(0.5 + 0.7 * (value - 0.5))
            axis.fill_between((column - 0.5, column + 0.5), row - 0.5, row + 0.5, color=colour, linewidth=0)
            axis.text(column, row - 0.14, f"{value:.2f}", ha="center", va="center")
            ends = "no interval" if figure["ci95"] is None else "{:.2f}–{:.2f}".format(*figure["ci95"])
            axis.text(column, row + 0.24, ends, ha="center", va="center", fontsize=6.5)
    labels = [f"level {level}\n{counts['mixed_prompts']} prompts" for level, counts in levels.items()]
    axis.set_xticks(range(len(levels)), labels)
    axis.set_xlim(-0.5, len(levels) - 0.5)
    axis.set_xlabel("prompts that have right and wrong candidates")
    axis.set_title("Same prompt, by level")
    axis.tick_params(left=False)
    axis.spines["left"].set_visible(False)


def _draw_length(axis, components: dict[str, Any]) -> None:
    series = (("all", "all candidates", "o", _BLUE, -0.16), ("wrong", "wrong ones alone", "s", _ORANGE, 0.16))
    for key, label, marker, colour, shift in series:
        found = [figures["length"][key] for figures in components.values()]
        _draw_points(axis, found, label, marker, colour, shift)
    axis.axvline(0, color=_GREY, linewidth=1, linestyle="--")
    axis.set_xlim(-1.05, 1.05)
    axis.set_xticks((-1, -0.5, 0, 0.5, 1))
    axis.set_xlabel("Spearman's correlation with tokens")
    axis.set_title("Tracks length?")
    _finish(axis, len(components))


def _draw_points(axis, found: list[dict], label: str, marker: str, colour: str, shift: float) -> None:
    points = [(row + shift, figure) for row, figure in enumerate(found) if figure["value"] is not None]
    values = [figure["value"] for _, figure in points]
    ends = [figure["ci95"] or (figure["value"], figure["value"]) for _, figure in points]
    axis.errorbar(
        values,
        [row for row, _ in points],
        # A percentile interval need not hold the value itself, where resamples are skewed.
        xerr=[
            [max(0.0, value - low) for value, (low, _) in zip(values, ends, strict=True)],
            [max(0.0, high - value) for value, (_, high) in zip(values, ends, strict=True)],
        ],
        fmt=marker,
        color=colour,
        markersize=5.5,
        capsize=3,
        linewidth=1.6,
        label=label,
    )


def _finish(axis, rows: int) -> None:
    axis.grid(axis="x")
    for row in range(rows - 1):
        axis.axhline(row + 0.5, color="#EEEEEE", linewidth=0.8)
    axis.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2)
