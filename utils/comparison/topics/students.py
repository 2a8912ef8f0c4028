"""Students against their teacher, item by item: what they keep of what it can do, and what they add.

The teacher is the policy evaluated as ``teacher``; it is a policy like any other in every other table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from utils.comparison.paired import PolicyResult
from utils.comparison.topics.number import Measured, percent_cell, with_measured
from utils.documents.text import markdown_table
from utils.statistics.accuracy_tests import rate, t_interval

TEACHER = "teacher"
COLUMNS = {"kept": "kept_of_teacher", "added": "added_to_teacher"}


@dataclass(frozen=True)
class Share(Measured):
    """A share of items with its interval: Wilson's with one run, a t interval over several (None: no spread).

    n is the number of items in all runs.
    """

    n: int


@dataclass(frozen=True)
class Student:
    """One policy against the teacher.

    Attributes:
        teacher: its name in the comparison.
        kept: of the items that the teacher answers correctly, those that the student does too.
        added: of the items that the teacher gets wrong, those that the student answers correctly.
        None where the teacher has no such item in some run.
    """

    teacher: str
    kept: Share | None
    added: Share | None


Students = dict[str, Student]


def is_teacher(name: str) -> bool:
    """Whether a policy of a comparison is the teacher itself ("teacher", "run_001/teacher")."""
    return name.rpartition("/")[2] == TEACHER


def students_of(results: Mapping[str, Sequence[PolicyResult]]) -> Students:
    """Every other policy against the teacher of its run, or the only one that there is.

    Compared on the items that both were given, run by run. {} without a teacher.
    """
    teachers = [name for name in results if is_teacher(name)]
    found: Students = {}
    for name, of_runs in results.items():
        beside = name.rpartition("/")[0] + "/" + TEACHER if "/" in name else TEACHER
        teacher = beside if beside in teachers else teachers[0] if len(teachers) == 1 else None
        if teacher and not is_teacher(name) and len(results[teacher]) == len(of_runs):
            kept, added = [], []
            for student, other in zip(of_runs, results[teacher], strict=True):
                right = dict(zip(other.ids, other.correct, strict=True))
                pairs = [
                    (right[i], c) for i, c in zip(student.ids, student.correct, strict=True) if i in right
                ]
                kept.append([mine for its, mine in pairs if its])
                added.append([mine for its, mine in pairs if not its])
            found[name] = Student(teacher, _share(kept), _share(added))
    return found


def _share(by_run: Sequence[Sequence[bool]]) -> Share | None:
    if not all(by_run):
        return None
    if len(by_run) == 1:
        share = rate(sum(by_run[0]), len(by_run[0]))
        return Share(share["value"], tuple(share["ci95"]), share["n"])
    values = np.array([np.mean(of_run) for of_run in by_run])
    ends = tuple(np.clip(t_interval(values), 0.0, 1.0).tolist()) if np.ptp(values) else None
    return Share(float(values.mean()), ends, sum(map(len, by_run)))


def with_students(
    rows: Sequence[dict[str, Any]], columns: Sequence[str], students: Students
) -> tuple[list, list]:
    """Rows and columns of summary.csv with ``kept_of_teacher``, ``added_to_teacher`` and their intervals."""
    if not students:
        return list(rows), list(columns)

    def of_policy(policy: str) -> dict[str, Share | None]:
        student = students.get(policy)
        return {name: getattr(student, kind) for kind, name in COLUMNS.items()} if student else {}

    return with_measured(rows, columns, list(COLUMNS.values()), of_policy)


def student_section(students: Students, accuracies: Mapping[str, tuple[float, Any]], runs: int) -> str:
    """The report's section, "" without a teacher among the policies."""
    if not students:
        return ""
    rows = []
    for name, student in students.items():
        gap = accuracies[name][0] - accuracies[student.teacher][0]
        rows.append(
            [name, student.teacher, f"{100 * gap + 0.0:+.1f}", _cell(student.kept), _cell(student.added)]
        )
    how = f"t intervals over {runs} seeds" if runs > 1 else "Wilson intervals"
    note = (
        "*teacher* is the model whose rewards or distributions the others learn from, evaluated like them. "
        "*Kept*: of the items that it answers correctly, those that the student does too; *added*: of those "
        f"that it gets wrong, those that the student answers correctly. 95 % {how}. Whether a difference is "
        "supported is said by the tests."
    )
    heads = ["student", "teacher", "difference, points", "kept", "added"]
    return f"## Students and their teacher\n\n{note}\n\n{markdown_table(heads, rows)}"


def _cell(share: Share | None) -> str:
    return percent_cell(share) + (f", n = {share.n:,}" if share else "")
