"""Policies that differ in their curriculum: groups of them, and the report's section on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from utils.comparison.over_seeds import SeedPair
from utils.comparison.paired import ALPHA, Pair
from utils.comparison.topics import levels as by_level
from utils.comparison.topics import sample_efficiency
from utils.comparison.topics import teacher as teacher_report
from utils.comparison.topics.levels import HELD_OUT, TRAINED, Levels
from utils.comparison.topics.sample_efficiency import Efficiency
from utils.comparison.topics.teacher import Against
from utils.documents.text import interval, listed, markdown_table, p_text, percent
from utils.frame.pipeline import CURRICULA, DEFAULT_CURRICULUM, POLICIES

CURRICULUM_FIGURE = "curriculum.png"


@dataclass(frozen=True)
class Group:
    """Policies of one method and reward, by curriculum.

    ``title`` is the name of the policy without a curriculum; ``policies`` maps curriculum -> policy, in the
    order of CURRICULA.
    """

    title: str
    policies: dict[str, str]


@dataclass(frozen=True)
class Findings:
    """What the section tells of each policy; ``accuracies``: policy -> accuracy and its 95 % interval."""

    accuracies: Mapping[str, tuple[float, tuple[float, float]]]
    pairs: Sequence[Pair] | Sequence[SeedPair]
    levels: Levels
    efficiency: Efficiency | None
    against: Against


def curriculum_of(policy: str) -> tuple[str, str]:
    """A policy's name without its curriculum, and the curriculum: "grpo_task_sec" -> ("grpo_task", "sec").

    The names of a run's policies are <method>[_<reward>][_<curriculum>]; without a curriculum it is random.
    """
    for curriculum in CURRICULA:
        head = policy.removesuffix(f"_{curriculum}")
        if head != policy and head.rsplit("/", 1)[-1].split("_")[0] in POLICIES:
            return head, curriculum
    return policy, DEFAULT_CURRICULUM


def curriculum_groups(policies: Sequence[str]) -> list[Group]:
    """The groups of which at least two curricula are compared, in the order of the policies."""
    found: dict[str, dict[str, str]] = {}
    for policy in policies:
        title, curriculum = curriculum_of(policy)
        found.setdefault(title, {})[curriculum] = policy
    return [
        Group(title, {name: of_group[name] for name in CURRICULA if name in of_group})
        for title, of_group in found.items()
        if len(of_group) > 1
    ]


def curriculum_section(groups: Sequence[Group], findings: Findings, seeds: int) -> str:
    """The report's section, "" where no method was trained under two curricula."""
    if not groups:
        return ""
    parts = ["## Curricula", _note(findings, seeds)]
    for group in groups:
        parts += [f"### {group.title}", _verdict(group, findings), _table(group, findings)]
    parts.append(f"![Validation by curriculum, and accuracy by level]({CURRICULUM_FIGURE})")
    return "\n\n".join(parts)


def _note(findings: Findings, seeds: int) -> str:
    note = (
        "Policies of one method and reward that differ in the curriculum of their training; *random* is the "
        "method without one. "
    )
    if findings.efficiency:
        note += (
            f"*To target*: sampled completions until the validation accuracy reaches "
            f"{percent(findings.efficiency.target)} (see Sample efficiency). "
        )
    over = f"mean over {seeds} seeds, bands from the lowest to the highest" if seeds > 1 else "one run each"
    shown = f"validation during training ({over}) and test accuracy by level with 95 % intervals"
    return f"{note}In the figure: {shown}."


def _verdict(group: Group, findings: Findings) -> str:
    """One sentence on whether the tests support a difference from random."""
    random = group.policies.get(DEFAULT_CURRICULUM)
    if random is None:
        return (
            "The method without a curriculum is not compared, so nothing is said of what a curriculum adds."
        )
    better, worse = [], []
    for curriculum, policy in group.policies.items():
        pair = _pair(random, policy, findings.pairs) if policy != random else None
        if pair and pair.significant:
            (better if _difference(pair, policy) > 0 else worse).append(curriculum)
    if not better and not worse:
        at_level = f"at the {ALPHA:g} level after Holm's correction"
        return f"The tests support no difference between any curriculum and random {at_level}."
    said = [f"{listed(names)} {word}" for names, word in ((better, "better"), (worse, "worse")) if names]
    return f"The tests support, against random: {'; '.join(said)}."


def _table(group: Group, findings: Findings) -> str:
    parts = [part for part in (TRAINED, HELD_OUT) if part in findings.levels.parts]
    heads = ["curriculum", "accuracy", *parts, "over random, points", "p"]
    heads += ["to target"] if findings.efficiency else []
    compared = [policy for policy in group.policies.values() if policy in findings.against]
    heads += ["agreement, own answers", "forward KL, gold text", "reverse KL, gold text"] if compared else []
    rows = []
    for curriculum, policy in group.policies.items():
        value, ci95 = findings.accuracies[policy]
        row = [curriculum, f"{percent(value)} ({interval(ci95)})"]
        row += [by_level.cell(findings.levels.parts[part].get(policy)) for part in parts]
        row += _over_random(group, policy, findings.pairs)
        if findings.efficiency:
            row.append(sample_efficiency.cell(findings.efficiency.reached.get(policy)))
        if compared:
            of_policy = findings.against.get(policy, {})
            shown = (("on_responses", "top1_agreement"), ("on_gold", "forward_kl"), ("on_gold", "reverse_kl"))
            row += [teacher_report.cell(of_policy.get(place), place[1]) for place in shown]
        rows.append(row)
    return markdown_table(heads, rows)


def _over_random(group: Group, policy: str, pairs: Sequence[Pair] | Sequence[SeedPair]) -> list[str]:
    """Cells: difference from random with its interval, and its corrected p-value."""
    random = group.policies.get(DEFAULT_CURRICULUM)
    pair = _pair(random, policy, pairs) if random not in (None, policy) else None
    if pair is None:
        return ["–", "–"]
    sign = 1 if pair.b == policy else -1
    low, high = sorted(100 * sign * end for end in pair.ci95)
    difference = f"{100 * _difference(pair, policy):+.1f} ({low:+.1f} to {high:+.1f})"
    return [difference, p_text(pair.p_holm).removeprefix("= ")]


def _difference(pair: Pair | SeedPair, policy: str) -> float:
    """Accuracy of ``policy`` less the other's."""
    return pair.difference if pair.b == policy else -pair.difference


def _pair(a: str, b: str, pairs: Sequence[Pair] | Sequence[SeedPair]) -> Pair | SeedPair | None:
    return next((pair for pair in pairs if {pair.a, pair.b} == {a, b}), None)
