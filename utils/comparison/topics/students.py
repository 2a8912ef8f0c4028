"""Students against their teacher, item by item: what they keep of what it can do, and what they add.

The teacher is the policy evaluated as ``teacher``; it is a policy like any other in every other table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from utils.comparison.estimates import Estimate, columns_of, over_runs, percent_cell
from utils.comparison.paired import PolicyResult
from utils.comparison.topic import Comparison, Topic
from utils.documents.document import Number, Paragraph, Section, Table, emphasis, sentence
from utils.documents.text import points
from utils.statistics.clusters import cluster_numbers, clustered_rate

TEACHER = "teacher"


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
    kept: Estimate | None
    added: Estimate | None


def topic(comparison: Comparison) -> Topic:
    """Nothing without a teacher among the policies."""
    students = students_of(comparison.results)
    if not students:
        return Topic()
    rows = []
    for name, student in students.items():
        gap = comparison.accuracies[name].value - comparison.accuracies[student.teacher].value
        difference = Number(points(gap), gap)
        rows.append([name, student.teacher, difference, _cell(student.kept), _cell(student.added)])
    note = sentence(
        "{} is the model whose rewards or distributions the others learn from, evaluated like them. {}: of "
        "the items that it answers correctly, those that the student does too; {}: of those that it gets "
        "wrong, those that the student answers correctly. 95 % {}. Whether a difference is supported is "
        "said by the tests.",
        *map(emphasis, ("teacher", "Kept", "added")),
        comparison.intervals(comparison.wilson),
    )
    table = Table(["student", "teacher", "difference, points", "kept", "added"], rows)
    columns = {
        name: columns_of({"kept_of_teacher": student.kept, "added_to_teacher": student.added})
        for name, student in students.items()
    }
    return Topic([Section("Students and their teacher", [Paragraph(note), table])], columns)


def _cell(share: Estimate | None) -> Number:
    cell = percent_cell(share)
    return cell._replace(text=f"{cell.text}, n = {share.n:,}") if share else cell


def is_teacher(name: str) -> bool:
    """Whether a policy of a comparison is the teacher itself ("teacher", "run_001/teacher")."""
    return name.rpartition("/")[2] == TEACHER


def students_of(results: Mapping[str, Sequence[PolicyResult]]) -> dict[str, Student]:
    """Every other policy against the teacher of its run, or the only one that there is.

    Compared on the items that both were given, run by run. {} without a teacher.
    """
    teachers = [name for name in results if is_teacher(name)]
    found: dict[str, Student] = {}
    for name, of_runs in results.items():
        beside = name.rpartition("/")[0] + "/" + TEACHER if "/" in name else TEACHER
        teacher = beside if beside in teachers else teachers[0] if len(teachers) == 1 else None
        if teacher and not is_teacher(name) and len(results[teacher]) == len(of_runs):
            both = [
                student.items.join(other.items.add_suffix("_teacher"), how="inner")
                for student, other in zip(of_runs, results[teacher], strict=True)
            ]
            kept = [of_run[of_run["correct_teacher"]] for of_run in both]
            added = [of_run[~of_run["correct_teacher"]] for of_run in both]
            found[name] = Student(teacher, _share(kept), _share(added))
    return found


def _share(by_run: Sequence[pd.DataFrame]) -> Estimate | None:
    """The share that is right: Wilson's interval with one run, a t interval over several."""
    if not all(map(len, by_run)):
        return None
    rates = [
        clustered_rate(of_run["correct"].to_numpy(), cluster_numbers(of_run["report"])) for of_run in by_run
    ]
    return over_runs(rates, (0.0, 1.0))
