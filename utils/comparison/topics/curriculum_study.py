"""Policies that differ in their curriculum alone: a table and a row of panels for each of their methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from utils.comparison.estimates import percent_cell
from utils.comparison.paired import ALPHA
from utils.comparison.topic import Comparison, Topic
from utils.comparison.topics.accuracy import difference_cells
from utils.comparison.topics.against_teacher import against_teacher
from utils.comparison.topics.against_teacher import cell as teacher_cell
from utils.comparison.topics.levels import HELD_OUT, TRAINED, Levels, levels_of
from utils.comparison.topics.sample_efficiency import efficiency_of
from utils.comparison.topics.validation_curves import Curve, curves_of, draw_curve, finish_curves
from utils.documents.document import (
    Figure,
    Heading,
    Line,
    Paragraph,
    Section,
    Table,
    emphasis,
    sentence,
)
from utils.documents.figures import PALETTE, Style, drawing, legend
from utils.documents.text import listed, percent
from utils.frame.pipeline import CURRICULA, DEFAULT_CURRICULUM, POLICIES

FIGURE = "curriculum.png"
# A colour and marker per curriculum, the same in every row; random is grey, as SFT is elsewhere.
_LOOKS = zip((1, 4, 5, 6, 3), "osD^v", strict=True)
STYLES = dict(zip(CURRICULA, (Style(PALETTE[colour], mark) for colour, mark in _LOOKS), strict=True))
START = Style("#222222", "")
WIDTH = 0.8  # of a level's bars together


@dataclass(frozen=True)
class CurriculumGroup:
    """Policies of one method and reward, by curriculum.

    ``title`` is the name of the policy without a curriculum; ``policies`` maps curriculum -> policy, in the
    order of CURRICULA.
    """

    title: str
    policies: dict[str, str]


def topic(comparison: Comparison) -> Topic:
    """Nothing where no method was trained under two curricula."""
    groups = curriculum_groups(comparison.policies)
    if not groups:
        return Topic()
    blocks = [Paragraph(_note(comparison))]
    for group in groups:
        blocks += [Heading(group.title), Paragraph(_verdict(group, comparison)), _table(group, comparison)]
    blocks.append(Figure(FIGURE, "Validation by curriculum, and accuracy by level"))
    draw = partial(plot_curricula, groups, curves_of(comparison)[0], levels_of(comparison))
    return Topic([Section("Curricula", blocks)], files={FIGURE: draw})


def curriculum_of(policy: str) -> tuple[str, str]:
    """A policy's name without its curriculum, and the curriculum: "grpo_task_sec" -> ("grpo_task", "sec").

    The names of a run's policies are <method>[_<reward>][_<curriculum>]; without a curriculum it is random.
    """
    for curriculum in CURRICULA:
        head = policy.removesuffix(f"_{curriculum}")
        if head != policy and head.rsplit("/", 1)[-1].split("_")[0] in POLICIES:
            return head, curriculum
    return policy, DEFAULT_CURRICULUM


def curriculum_groups(policies: Sequence[str]) -> list[CurriculumGroup]:
    """The groups of which at least two curricula are compared, in the order of the policies."""
    found: dict[str, dict[str, str]] = {}
    for policy in policies:
        title, curriculum = curriculum_of(policy)
        found.setdefault(title, {})[curriculum] = policy
    return [
        CurriculumGroup(title, {name: of_group[name] for name in CURRICULA if name in of_group})
        for title, of_group in found.items()
        if len(of_group) > 1
    ]


def _note(comparison: Comparison) -> Line:
    note = sentence(
        "Policies of one method and reward that differ in the curriculum of their training; {} is the method "
        "without one. ",
        emphasis("random"),
    )
    if efficiency := efficiency_of(comparison):
        until = f": sampled completions until the validation accuracy reaches {percent(efficiency.target)}"
        note = [*note, emphasis("To target"), f"{until} (see Sample efficiency). "]
    seeds = comparison.runs
    over = f"mean over {seeds} seeds, bands from the lowest to the highest" if seeds > 1 else "one run each"
    shown = f"validation during training ({over}) and test accuracy by level with 95 % intervals"
    return [*note, f"In the figure: {shown}."]


def _verdict(group: CurriculumGroup, comparison: Comparison) -> str:
    """One sentence on whether the tests support a difference from random."""
    if DEFAULT_CURRICULUM not in group.policies:
        return (
            "The method without a curriculum is not compared, so nothing is said of what a curriculum adds."
        )
    better, worse = [], []
    for curriculum, policy in group.policies.items():
        pair, sign = comparison.test_of(group.policies[DEFAULT_CURRICULUM], policy)
        if pair and pair.significant:
            (better if sign * pair.difference > 0 else worse).append(curriculum)
    if not better and not worse:
        at_level = f"at the {ALPHA:g} level after Holm's correction"
        return f"The tests support no difference between any curriculum and random {at_level}."
    said = [f"{listed(names)} {word}" for names, word in ((better, "better"), (worse, "worse")) if names]
    return f"The tests support, against random: {'; '.join(said)}."


def _table(group: CurriculumGroup, comparison: Comparison) -> Table:
    levels, efficiency = levels_of(comparison), efficiency_of(comparison)
    against = against_teacher(comparison.results)
    parts = [part for part in (TRAINED, HELD_OUT) if part in levels.parts]
    compared = any(policy in against for policy in group.policies.values())
    heads = ["curriculum", "accuracy", *parts, "over random, points", "p", "detectable"]
    heads += ["to target"] if efficiency else []
    heads += ["agreement, own answers", "forward KL, gold text", "reverse KL, gold text"] if compared else []
    rows = []
    for curriculum, policy in group.policies.items():
        row: list[Line] = [curriculum, percent_cell(comparison.accuracies[policy])]
        row += [percent_cell(levels.parts[part].get(policy), unknown="") for part in parts]
        row += difference_cells(comparison, group.policies.get(DEFAULT_CURRICULUM, policy), policy)
        if efficiency:
            reached = efficiency.reached.get(policy)
            row.append(reached.cell() if reached else "–")
        if compared:
            shown = (("on_responses", "top1_agreement"), ("on_gold", "forward_kl"), ("on_gold", "reverse_kl"))
            row += [teacher_cell(against.get(policy, {}).get(place), place[1]) for place in shown]
        rows.append(row)
    return Table(heads, rows)


# ------------------------------------------------------------------------------------------- figure


def plot_curricula(
    groups: Sequence[CurriculumGroup], curves: Sequence[Curve], levels: Levels, path: Path
) -> None:
    """Validation accuracy over sampled completions, and bars of test accuracy by level, for every group.

    A line is the mean over seeds, its band reaches from the lowest seed to the highest; SFT is a dashed
    level. Whiskers are 95 % intervals, dots the seeds.
    """
    widths = (1, 1.25) if levels.shown else (1,)
    size = (12 if levels.shown else 6.5, 0.6 + 3.9 * len(groups))
    with drawing(path, size, widths, len(groups)) as (figure, axes):
        shown: dict = {}
        for row, group in enumerate(groups):
            left, *right = axes[row * len(widths) : (row + 1) * len(widths)]
            _draw_training(left, group, curves)
            for axis in right:
                _draw_levels(axis, group, levels)
            for axis in (left, *right):
                handles, names = axis.get_legend_handles_labels()
                shown = dict(zip(names, handles, strict=True)) | shown
        names = [name for name in dict.fromkeys((*CURRICULA, *shown)) if name in shown]
        legend(figure, [shown[name] for name in names], names)


def _draw_training(axis, group: CurriculumGroup, curves: Sequence[Curve]) -> None:
    of_policy = {curve.policy: curve for curve in curves if curve.kind != "level"}
    drawn = {name: of_policy[policy] for name, policy in group.policies.items() if policy in of_policy}
    for curriculum, curve in drawn.items():
        draw_curve(axis, replace(curve, policy=curriculum), "val_accuracy", 100, STYLES[curriculum])
    if not drawn:
        axis.text(0.5, 0.5, "no training log", transform=axis.transAxes, ha="center", color="#444444")
    elif start := next((curve for curve in curves if curve.policy == "sft"), None):
        draw_curve(axis, replace(start, policy="sft (start)"), "val_accuracy", 100, START)
    finish_curves(axis, f"{group.title}: validation", list(drawn.values()))
    axis.set_ylabel("validation accuracy (%)")


def _draw_levels(axis, group: CurriculumGroup, levels: Levels) -> None:
    width = WIDTH / len(group.policies)
    for index, (curriculum, policy) in enumerate(group.policies.items()):
        shift = (index - (len(group.policies) - 1) / 2) * width
        for place, shares in enumerate(levels.shown.values()):
            if (share := shares.get(policy)) is None:
                continue
            x, value, label = place + shift, 100 * share.value, curriculum if place == 0 else None
            axis.bar(x, value, width * 0.92, color=STYLES[curriculum].colour, alpha=0.75, label=label)
            axis.errorbar(x, value, yerr=share.whiskers(100), color="#222222", capsize=2.5, linewidth=1.2)
            if len(share.by_run) > 1:
                dots, beside = [100 * each for each in share.by_run], [x + 0.3 * width] * len(share.by_run)
                axis.scatter(beside, dots, s=8, color="#222222", linewidths=0, zorder=3)
    labels = [
        f"{levels.title(part).replace(', ', chr(10)).replace(' levels', chr(10) + 'levels')}"
        f"\nn = {levels.count(part)}"
        for part in levels.shown
    ]
    axis.set_xticks(range(len(labels)), labels)
    if groups := [place for place, part in enumerate(levels.shown) if part in (TRAINED, HELD_OUT)]:
        axis.axvline(groups[0] - 0.5, color="#444444", linewidth=0.8)
    axis.set(xlim=(-0.5, len(labels) - 0.5), ylim=(0, 103), ylabel="test accuracy (%), 95 % interval")
    axis.set_title(f"{group.title}: test accuracy by level")
    axis.grid(axis="y")
