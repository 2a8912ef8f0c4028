"""Accuracy by level of every compared policy, and of the levels that nothing was trained on, apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from utils.comparison.over_seeds import Experiment, mean_accuracies
from utils.comparison.paired import PolicyResult
from utils.documents.text import interval, markdown_table, percent
from utils.statistics.accuracy_tests import rate

TRAINED, HELD_OUT = "trained levels", "held-out levels"


@dataclass(frozen=True)
class Share:
    """An accuracy with its interval over n items, and the accuracy with every seed."""

    value: float
    ci95: tuple[float, float]
    n: int
    by_seed: list[float]


@dataclass(frozen=True)
class Levels:
    """Accuracies by part of the items: a level (int), TRAINED or HELD_OUT.

    Attributes:
        parts: part -> policy -> accuracy; the groups are there only where levels are held out.
        held_out: the levels that nothing was trained on.
    """

    parts: dict[int | str, dict[str, Share]]
    held_out: list[int]

    @property
    def levels(self) -> list[int]:
        return [part for part in self.parts if isinstance(part, int)]

    @property
    def shown(self) -> dict[int | str, dict[str, Share]]:
        """The parts without a group that is a single level, which stands there already."""
        alone = len(set(self.levels) & set(self.held_out)) == 1
        return {part: of_part for part, of_part in self.parts.items() if not (alone and part == HELD_OUT)}

    def title(self, part: int | str) -> str:
        """The part's name for a table or a figure."""
        if isinstance(part, int):
            return f"level {part}" + (", held out" if part in self.held_out else "")
        return part


def levels_of(results: Sequence[PolicyResult]) -> Levels:
    """Accuracies of policies of one run each, with Wilson intervals."""
    held_out = held_out_levels(results)
    parts = {}
    for part, levels in _parts([level for result in results for level in result.levels], held_out).items():
        shares = {}
        for result in results:
            right = [c for c, at in zip(result.correct, result.levels, strict=True) if at in levels]
            if right:
                share = rate(sum(right), len(right))
                shares[result.name] = Share(
                    share["value"], tuple(share["ci95"]), share["n"], [share["value"]]
                )
        parts[part] = shares
    return Levels(parts, held_out)


def levels_of_seeds(experiment: Experiment) -> Levels:
    """Means over seeds with the intervals of the hierarchical bootstrap."""
    held_out = held_out_levels([each for of_runs in experiment.results.values() for each in of_runs])
    parts = {}
    for part, levels in _parts(experiment.levels, held_out).items():
        of_part = experiment.correct[:, :, np.array([at in levels for at in experiment.levels])]
        # A group that is one level has that level's interval, not another draw of the bootstrap.
        means = experiment.level_means.get(part if len(levels) > 1 else min(levels))
        if means is None:
            means, _ = mean_accuracies(of_part, experiment.seed, part)
        parts[part] = {
            name: Share(mean.value, mean.ci95, mean.n, by_seed.tolist())
            for name, mean, by_seed in zip(experiment.policies, means, of_part.mean(axis=2), strict=True)
        }
    return Levels(parts, held_out)


def held_out_levels(results: Sequence[PolicyResult]) -> list[int]:
    """The levels that were held out for any of the evaluations."""
    return sorted({level for result in results for level in result.metrics.get("held_out_levels", [])})


def _parts(at: Sequence[int | None], held_out: Sequence[int]) -> dict[int | str, set[int | None]]:
    """Part -> levels of its items, for the parts that have any; items without a level count as trained."""
    found = set(at)
    parts: dict[int | str, set[int | None]] = {level: {level} for level in sorted(found - {None})}
    if found & set(held_out):
        if rest := found - set(held_out):
            parts[TRAINED] = rest
        parts[HELD_OUT] = found & set(held_out)
    return parts


def level_table(levels: Levels, policies: Sequence[str], head: str) -> str:
    """The table of every policy's accuracy by level, "" where no item has one."""
    if not levels.levels:
        return ""
    rows = [[name, *(cell(shares.get(name)) for shares in levels.shown.values())] for name in policies]
    heads = []
    for part, shares in levels.shown.items():
        n = max(share.n for share in shares.values())
        heads.append(f"{levels.title(part)} (n = {n})")
    table = markdown_table([head, *heads], rows)
    if not levels.held_out:
        return table
    named = ", ".join(map(str, levels.held_out))
    return f"{table}\n\nLevel {named} was held out: no record of it was trained on or validated with."


def cell(share: Share | None) -> str:
    """One accuracy with its interval for a table."""
    return "" if share is None else f"{percent(share.value)} ({interval(share.ci95)})"


def with_levels(rows: Sequence[dict], columns: Sequence[str], levels: Levels) -> tuple[list[dict], list[str]]:
    """Rows and columns of summary.csv with ``accuracy_level_<n>``, ``accuracy_held_out_levels`` and so on.

    Each has the ends of its interval beside it.
    """
    groups = {TRAINED: "accuracy_trained_levels", HELD_OUT: "accuracy_held_out_levels"}
    names = {part: groups.get(part, f"accuracy_level_{part}") for part in levels.parts}
    filled = []
    for row in rows:
        cells = {}
        for part, name in names.items():
            share = levels.parts[part].get(row["policy"])
            values = (share.value, *share.ci95) if share else ("", "", "")
            cells |= dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))
        filled.append(row | cells)
    more = [f"{name}{end}" for name in names.values() for end in ("", "_low", "_high")]
    return filled, [*(name for name in columns if name not in more), *more]
