"""Figures of what lies below the accuracies: levels, KL against reward, and how rewards rank candidates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils.comparison.topics.levels import Levels
from utils.comparison.topics.number import Measured
from utils.documents.figures import PALETTE, drawing, legend, styles_of

DARK = 0.55  # of the colour scale, above which text is dark: cividis runs from dark blue to light yellow

Accuracies = Mapping[str, tuple[float, tuple[float, float]]]


def plot_level_heatmap(levels: Levels, policies: Sequence[str], path: str | Path) -> None:
    """A row per policy, a column per level (and group of levels), each cell with its accuracy in per cent.

    The colour says the same as the number, on a scale that colour-blind readers can tell (cividis).
    """
    from matplotlib import colormaps

    parts = levels.shown
    size = (2.6 + 1.15 * len(parts), 1.6 + 0.42 * len(policies))
    scale = colormaps["cividis"]
    with drawing(path, size, (1,)) as (figure, (axis,)):
        for row, name in enumerate(policies):
            for column, shares in enumerate(parts.values()):
                share = shares.get(name)
                if share is None:
                    axis.text(column, row, "–", ha="center", va="center")
                    continue
                colour = scale(share.value)
                axis.fill_between(
                    (column - 0.5, column + 0.5), row - 0.5, row + 0.5, color=colour, linewidth=0
                )
                ink = "black" if share.value > DARK else "white"
                axis.text(column, row - 0.1, f"{100 * share.value:.1f}", ha="center", va="center", color=ink)
                ends = f"{100 * share.ci95[0]:.0f}–{100 * share.ci95[1]:.0f}"
                axis.text(column, row + 0.28, ends, ha="center", va="center", color=ink, fontsize=6.5)
        titles = [
            f"{levels.title(part).replace(', ', chr(10))}\nn = {max(share.n for share in shares.values())}"
            for part, shares in parts.items()
        ]
        axis.set_xticks(range(len(parts)), titles)
        axis.set_yticks(range(len(policies)), policies)
        axis.set_xlim(-0.5, len(parts) - 0.5)
        axis.set_ylim(len(policies) - 0.5, -0.5)
        axis.tick_params(length=0)
        for spine in axis.spines.values():
            spine.set_visible(False)
        axis.set_title("Accuracy by level (%), with its 95 % interval")


def frontier(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The policies that no other one beats (as much reward for less KL, or more for no more), by rising KL.

    Args:
        points: policy -> (KL, reward).
    """
    best = [
        name
        for name, (kl, reward) in points.items()
        if not any(
            other_kl <= kl and other >= reward and (other_kl, other) != (kl, reward)
            for other_kl, other in points.values()
        )
    ]
    return sorted(best, key=lambda name: points[name])


def plot_frontier(
    kl: Mapping[str, Measured],
    rewards: Mapping[str, Measured],
    accuracies: Accuracies,
    path: str | Path,
) -> None:
    """Mean total reward (where there is any) and accuracy against the KL to the reference, nats per response.

    A line joins the policies that no other beats in both. All with 95 % intervals.
    """
    styles = styles_of(list(accuracies))
    scaled = {
        name: Measured(100 * accuracies[name][0], tuple(100 * end for end in accuracies[name][1]))
        for name in kl
    }
    panels = [("mean total reward", {name: rewards[name] for name in kl if name in rewards})]
    panels.append(("test accuracy (%)", scaled))
    panels = [panel for panel in panels if panel[1]]
    with drawing(path, (5.5 * len(panels), 4.6), (1,) * len(panels)) as (figure, axes):
        for axis, (label, values) in zip(axes, panels, strict=True):
            for name, measured in values.items():
                axis.errorbar(
                    kl[name].value,
                    measured.value,
                    xerr=_whiskers(kl[name]),
                    yerr=_whiskers(measured),
                    fmt=styles[name].marker,
                    color=styles[name].colour,
                    markersize=8,
                    capsize=3,
                    linewidth=1.6,
                    label=name,
                )
            at = {name: (kl[name].value, measured.value) for name, measured in values.items()}
            on = [at[name] for name in frontier(at)]
            axis.plot(*zip(*on, strict=True), color="#444444", linewidth=1, linestyle=":", zorder=0)
            axis.set_xlabel("KL(policy | reference), nats per response")
            axis.set_ylabel(f"{label}, 95 % interval")
            axis.set_title(f"{label.partition(' (')[0].capitalize()} against KL")
            axis.grid()
        legend(figure, *axes[-1].get_legend_handles_labels())


def plot_audits(audits: Mapping[str, Mapping[str, Any]], path: str | Path) -> None:
    """Reward audits of several runs: do components rank right above wrong, and do they track length?

    Args:
        audits: run -> reward_audit.json. A mark is a run, a bar the mean of the runs that have the number.
    """
    names = list(dict.fromkeys(name for audit in audits.values() for name in audit["components"]))
    panels = (
        ("Ranks right above wrong?", "pairs of the same prompt, right one above (0.5: chance)", 0.5, (0, 1)),
        ("Tracks length?", "Spearman's correlation with tokens, wrong ones alone", 0.0, (-1, 1)),
    )
    with drawing(path, (11, 1.9 + 0.36 * len(names)), (1, 1)) as (figure, axes):
        for panel, (axis, (title, label, chance, (low, high))) in enumerate(zip(axes, panels, strict=True)):
            for row, name in enumerate(names):
                values = _audited(audits, name, panel)
                shifts = np.linspace(-0.2, 0.2, len(audits)) if len(audits) > 1 else [0.0]
                for place, (value, shift) in enumerate(zip(values, shifts, strict=True)):
                    if value is not None:
                        colour = PALETTE[(place + 4) % len(PALETTE)]
                        axis.plot(value, row + shift, "osD^vXP"[place % 7], color=colour, markersize=5)
                known = [value for value in values if value is not None]
                if known:
                    axis.plot([np.mean(known)] * 2, [row - 0.32, row + 0.32], color="#222222", linewidth=1.5)
                else:
                    axis.text(chance, row, "not defined", ha="center", va="center", fontsize=8)
            axis.axvline(chance, color="#5B5B5B", linewidth=1, linestyle="--", zorder=0)
            axis.set_xlim(low - 0.04, high + 0.04)
            axis.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
            axis.set_ylim(len(names) - 0.4, -0.6)
            axis.set_xlabel(label)
            axis.set_title(title)
            axis.grid(axis="x")
        from matplotlib.lines import Line2D

        handles = [
            Line2D(
                [], [], color=PALETTE[(place + 4) % len(PALETTE)], marker="osD^vXP"[place % 7], linestyle=""
            )
            for place in range(len(audits))
        ]
        legend(figure, handles, list(audits))


def _audited(audits: Mapping[str, Mapping[str, Any]], name: str, panel: int) -> list[float | None]:
    found = [audit["components"].get(name) for audit in audits.values()]
    if panel == 0:
        return [each["pair_accuracy"]["value"] if each else None for each in found]
    return [each["length"]["wrong"]["value"] if each else None for each in found]


def _whiskers(measured: Measured) -> list[list[float]] | None:
    if measured.ci95 is None:
        return None
    low, high = measured.ci95
    return [[max(0.0, measured.value - low)], [max(0.0, high - measured.value)]]
