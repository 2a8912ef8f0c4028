"""Accuracy by level of every policy, and of the levels that nothing was trained on, apart."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

from utils.comparison.estimates import Estimate, columns_of, estimate_of, percent_cell
from utils.comparison.over_seeds import mean_accuracies
from utils.comparison.topic import Comparison, Topic
from utils.documents.document import Block, Figure, Paragraph, Section, Table
from utils.documents.figures import drawing
from utils.statistics.clusters import cluster_numbers, clustered_rate

TRAINED, HELD_OUT = "trained levels", "held-out levels"
HEATMAP = "level_heatmap.png"
DARK = 0.55  # of the colour scale, above which text is dark: cividis runs from dark blue to light yellow

_COLUMNS = {TRAINED: "accuracy_trained_levels", HELD_OUT: "accuracy_held_out_levels"}


@dataclass(frozen=True)
class Levels:
    """Accuracies by part of the items: a level (int), TRAINED or HELD_OUT.

    Attributes:
        parts: part -> policy -> accuracy; the groups are there only where levels are held out.
        held_out: the levels that nothing was trained on.
    """

    parts: dict[int | str, dict[str, Estimate]]
    held_out: list[int]

    @property
    def levels(self) -> list[int]:
        return [part for part in self.parts if isinstance(part, int)]

    @property
    def shown(self) -> dict[int | str, dict[str, Estimate]]:
        """The parts without a group that is a single level, which stands there already."""
        alone = len(set(self.levels) & set(self.held_out)) == 1
        return {part: of_part for part, of_part in self.parts.items() if not (alone and part == HELD_OUT)}

    def title(self, part: int | str) -> str:
        """The part's name for a table or a figure."""
        if isinstance(part, int):
            return f"level {part}" + (", held out" if part in self.held_out else "")
        return part

    def count(self, part: int | str) -> int:
        """Items of a part."""
        return max(share.n for share in self.parts[part].values())


def topic(comparison: Comparison) -> Topic:
    """The heat map, and ``accuracy_level_<n>`` and so on; the table stands with the accuracies."""
    levels = levels_of(comparison)
    columns = {
        policy: columns_of(
            {
                _COLUMNS.get(part, f"accuracy_level_{part}"): of_part.get(policy)
                for part, of_part in levels.parts.items()
            }
        )
        for policy in comparison.policies
    }
    if not levels.levels:
        return Topic(columns=columns)
    return Topic(
        sections=[Section("Levels", [Figure(HEATMAP, "Accuracy of every policy by level")])],
        columns=columns,
        files={HEATMAP: partial(plot_level_heatmap, levels, comparison.policies)},
    )


@lru_cache(maxsize=1)
def levels_of(comparison: Comparison) -> Levels:
    """Accuracies by part, with 10's kind of interval or over seeds that of the hierarchical bootstrap."""
    every = [result for of_runs in comparison.results.values() for result in of_runs]
    held_out = sorted({level for result in every for level in result.metrics.get("held_out_levels", [])})
    at = {level for result in every for level in result.items["level"]}
    parts: dict[int | str, set[int | None]] = {level: {level} for level in sorted(at - {None})}
    if at & set(held_out):
        if rest := at - set(held_out):
            parts[TRAINED] = rest  # items without a level count as trained
        parts[HELD_OUT] = at & set(held_out)
    measure = _over_seeds if comparison.experiment else _of_single_runs
    return Levels({part: measure(comparison, part, levels) for part, levels in parts.items()}, held_out)


def _of_single_runs(comparison: Comparison, part: int | str, levels: Collection) -> dict[str, Estimate]:
    found = {}
    for name, (result,) in comparison.results.items():
        of_part = result.items[result.items["level"].isin(levels)]
        if len(of_part):
            found[name] = estimate_of(
                clustered_rate(of_part["correct"].to_numpy(), cluster_numbers(of_part["report"]))
            )
    return found


def _over_seeds(comparison: Comparison, part: int | str, levels: Collection) -> dict[str, Estimate]:
    experiment = comparison.experiment
    # A group that is one level has that level's interval, not another draw of the bootstrap.
    part = next(iter(levels)) if len(levels) == 1 and None not in levels else part
    inside = experiment.items["level"].isin(levels).to_numpy()
    clusters = None if experiment.clusters is None else cluster_numbers(experiment.clusters[inside])
    means, _ = mean_accuracies(experiment.correct[:, :, inside], experiment.seed, part, clusters)
    return dict(zip(experiment.policies, means, strict=True))


def level_blocks(comparison: Comparison, head: str) -> list[Block]:
    """The table of every policy's accuracy by level; nothing where no item has one."""
    levels = levels_of(comparison)
    if not levels.levels:
        return []
    heads = [head, *(f"{levels.title(part)} (n = {levels.count(part)})" for part in levels.shown)]
    rows = [
        [name, *(percent_cell(shares.get(name), unknown="") for shares in levels.shown.values())]
        for name in comparison.policies
    ]
    if not levels.held_out:
        return [Table(heads, rows)]
    named = ", ".join(map(str, levels.held_out))
    note = f"Level {named} was held out: no record of it was trained on or validated with."
    return [Table(heads, rows), Paragraph(note)]


def plot_level_heatmap(levels: Levels, policies: list[str], path: Path) -> None:
    """A row per policy, a column per level (and group of levels), each cell with its accuracy in per cent.

    The colour says the same as the number, on a scale that colour-blind readers can tell (cividis).
    """
    from matplotlib import colormaps

    parts, scale = levels.shown, colormaps["cividis"]
    size = (2.6 + 1.15 * len(parts), 1.6 + 0.42 * len(policies))
    with drawing(path, size, (1,)) as (_, (axis,)):
        for row, name in enumerate(policies):
            for column, shares in enumerate(parts.values()):
                share, middle = shares.get(name), {"ha": "center", "va": "center"}
                if share is None:
                    axis.text(column, row, "–", **middle)
                    continue
                x, ink = (column - 0.5, column + 0.5), "black" if share.value > DARK else "white"
                axis.fill_between(x, row - 0.5, row + 0.5, color=scale(share.value), linewidth=0)
                axis.text(column, row - 0.1, f"{100 * share.value:.1f}", color=ink, **middle)
                ends = f"{100 * share.ci95[0]:.0f}–{100 * share.ci95[1]:.0f}"
                axis.text(column, row + 0.28, ends, color=ink, fontsize=6.5, **middle)
        titles = [f"{levels.title(p).replace(', ', chr(10))}\nn = {levels.count(p)}" for p in parts]
        axis.set_xticks(range(len(parts)), titles)
        axis.set_yticks(range(len(policies)), policies)
        axis.set(xlim=(-0.5, len(parts) - 0.5), ylim=(len(policies) - 0.5, -0.5))
        axis.tick_params(length=0)
        for spine in axis.spines.values():
            spine.set_visible(False)
        axis.set_title("Accuracy by level (%), with its 95 % interval")
