"""Agreement with the teacher in a comparison: columns of summary.csv and a section of report.md."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from utils.comparison.paired import PolicyResult
from utils.comparison.topics.number import Measured, number_cell, over_runs, percent_cell, with_measured
from utils.documents.text import markdown_table

# What is shown of 10's metrics.json: its key -> title and, for the interval, the range of its values.
SHOWN = {
    "top1_agreement": ("agreement", (0.0, 1.0)),
    "forward_kl": ("forward KL", (0.0, math.inf)),
    "reverse_kl": ("reverse KL", (0.0, math.inf)),
    "jsd": ("JSD", (0.0, math.log(2))),
}
TEXTS = {"on_responses": "own answers", "on_gold": "gold text"}


Against = dict[str, dict[tuple[str, str], Measured]]  # policy -> (text, key) -> what was measured


def against_teacher(results: Mapping[str, Sequence[PolicyResult]]) -> Against:
    """Policy -> its distance from the teacher, where every evaluation of it has one.

    With one run, the intervals are 10's (bootstrap over items). With several, means over the runs with a t
    interval over seeds, cut to the range of possible values.
    """
    found: Against = {}
    for name, of_runs in results.items():
        parts = [result.metrics.get("teacher", {}) for result in of_runs]
        for text in TEXTS:
            for key, (_, bounds) in SHOWN.items():
                measured = [part.get(text, {}).get(key) for part in parts]
                if None not in measured:
                    found.setdefault(name, {})[text, key] = over_runs(measured, bounds)
    return found


def with_teacher(
    rows: Sequence[dict[str, Any]], columns: Sequence[str], against: Against
) -> tuple[list, list]:
    """Rows and columns of summary.csv with ``responses_top1_agreement``, ``gold_forward_kl`` and so on.

    Each has the ends of its interval beside it; blank for policies without. No columns where none has any.
    """
    if not against:
        return list(rows), list(columns)
    names = {(t, k): f"{t.removeprefix('on_')}_{k}" for t in TEXTS for k in SHOWN}

    def of_policy(policy: str) -> dict[str, Measured]:
        return {names[place]: measured for place, measured in against.get(policy, {}).items()}

    return with_measured(rows, columns, list(names.values()), of_policy)


def teacher_section(against: Against, seeds: int) -> str:
    """The report's section, "" where no policy was held against a teacher."""
    if not against:
        return ""
    rows = [
        [name, *(cell(of_policy.get((text, key)), key) for text in TEXTS for key in SHOWN)]
        for name, of_policy in against.items()
    ]
    heads = [f"{title}, {where}" for where in TEXTS.values() for title, _ in SHOWN.values()]
    how = f"t intervals over {seeds} seeds" if seeds > 1 else "bootstrap intervals over items"
    note = (
        "Policy and teacher given the same prefix, over response tokens alone: how often both put the same "
        "token first, and divergences in nats per token (forward: KL(teacher | policy)). *Own answers* are "
        f"the policy's greedy ones, so every row is about other text; the *gold text* is the same for all. "
        f"95 % {how}."
    )
    return f"## Against the teacher\n\n{note}\n\n{markdown_table(['policy', *heads], rows)}"


def cell(measured: Measured | None, key: str) -> str:
    """One number with its interval for a table."""
    return percent_cell(measured) if key == "top1_agreement" else number_cell(measured, to="–")
