"""Reader for MATH (Hendrycks et al. 2021, arXiv 2103.03874).

Rows with ``problem, level, type, solution`` and optionally ``answer`` (MATH-500: ``subject`` for ``type``,
and ``unique_id``), in one file, or on the hub in a folder per type; and the original folders with one file
per problem, ``train/<type>/<n>.json``. Without ``answer`` it is the content of the last brace-balanced
``\\boxed{…}`` of the solution. Two published train problems have ``Level ?`` (read as no level) and two have
an empty box (no gold answer: an error). Twenty published problems ask for several answers, which their
solutions box one by one: the gold is the list of them.
"""

import re
from collections.abc import Callable
from pathlib import Path

from utils.data.boxed import all_boxed, boxed_list, last_boxed
from utils.data.layouts import read_items
from utils.data.reader import Reader
from utils.data.reading import (
    FILE,
    Notes,
    Problem,
    RawItem,
    RawRow,
    describe,
    read_object,
    usable_rows,
)

# Folders of the hub's copy, one a type.
_BY_TYPE = (
    *("algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory"),
    *("prealgebra", "precalculus"),
)
# How questions ask for more than one answer, which is then a list.
_ASKS_FOR_SEVERAL = re.compile(
    r"separated by|\b(?:find|give|list|enter|determine) all\b|\ball (?:possible )?values\b", re.IGNORECASE
)
_LEVEL = re.compile(r"(?:Level )?([1-5])")
_USED = {"problem", "level", "type", "subject", "solution", "answer"}


class MathReader(Reader):
    """MATH. Rows without a ``unique_id`` are called ``<split>-<row>``; in folders rows are counted in the
    order of type and number."""

    name = "math"
    files = {
        "train": ("train.jsonl", "train", "MATH/train", f"{_BY_TYPE[0]}/train-00000-of-00001.parquet"),
        "val": ("val.jsonl",),
        "test": ("test.jsonl", "test", "MATH/test", f"{_BY_TYPE[0]}/test-00000-of-00001.parquet"),
    }
    markers = ("problem",)

    def recognises(self, row) -> bool:
        return "problem" in row

    def parts(self, path) -> list[Path]:
        if path.parent.name != _BY_TYPE[0]:
            return super().parts(path)
        return [path.parent.parent / folder / path.name for folder in _BY_TYPE]

    def read(self, path, split, required=()):
        items, problems = _read_folder(path) if path.is_dir() else read_items(self.parts(path), self.markers)
        return usable_rows(items, problems, split, _check, _USED, required, _identify), problems

    def closed(self, answer, solution, notes) -> tuple[str, str]:
        """Answer and solution, that ending in ``\\boxed{answer}``; notes an error where they disagree."""
        stated = last_boxed(solution)
        if stated is None:
            return answer, f"{solution}\n\\boxed{{{answer}}}".strip()
        if stated.strip() != answer:
            notes.error("two_answers", f"'answer' is {answer[:40]!r}, and 'solution' boxes {stated[:40]!r}")
        return answer, solution


READER = MathReader()


def _read_folder(path: Path) -> tuple[list[RawItem], list[Problem]]:
    def order(found: Path) -> tuple:
        return (found.parent.name, int(found.stem) if found.stem.isdecimal() else -1, found.stem)

    items: list[RawItem] = []
    problems: list[Problem] = []
    for row, found in enumerate(sorted(path.glob("*/*.json"), key=order)):
        name = f"{path.name}/{found.parent.name}/{found.name}"
        new_items, new_problems = read_object(found, name, row)
        items += new_items
        problems += new_problems
    if not items and not problems:
        message = "the folder holds no <type>/<n>.json"
        problems.append(Problem(path.name, FILE, "", "error", "empty_folder", message))
    return items, problems


def _identify(row: dict, notes: Notes) -> None:
    if isinstance(row.get("unique_id"), str) and row["unique_id"].strip():
        notes.id = row["unique_id"]


def _check(item: RawItem, notes: Notes) -> RawRow | None:
    row = item.value
    question, solution = notes.text(row, "problem"), notes.text(row, "solution")
    answer, level = _answer(row, solution, notes), _level(row, notes.warning)
    several = len(all_boxed(solution)) > 1
    if several and not notes.failed and answer == last_boxed(solution) and _ASKS_FOR_SEVERAL.search(question):
        answer = boxed_list(solution)
        message = f"the question asks for several answers, boxed one by one: the gold is {answer[:80]!r}"
        notes.warning("several_boxes", message)
    type_ = row.get("type", row.get("subject", ""))
    if not isinstance(type_, str):
        notes.error("wrong_type", f"'type' must be text, found {describe(type_)}")
        return None
    return item.as_row(
        notes.id,
        question=question.strip(),
        answer=answer,
        solution=solution.strip(),
        level=level,
        type=type_,
        traits=("several boxes, of which the last counts",) * (several and answer == last_boxed(solution)),
    )


def _level(row: dict, warn: Callable[[str, str], None]) -> int | None:
    value = row.get("level")
    found = _LEVEL.fullmatch(str(value)) if isinstance(value, str | int) else None
    if found is None:
        warn("no_level", f"'level' should be Level 1 to Level 5, found {describe(value)}; read as no level")
        return None
    return int(found.group(1))


def _answer(row: dict, solution: str, notes: Notes) -> str:
    boxed = last_boxed(solution)
    value = row.get("answer", boxed)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(int(value) if isinstance(value, float) and value.is_integer() else value)
    if value is None:
        notes.error("unparsable_gold", "the solution holds no \\boxed answer, and 'answer' is missing")
    elif not isinstance(value, str):
        notes.error("wrong_type", f"'answer' must be text, found {describe(value)}")
    elif not value.strip():
        notes.error("unparsable_gold", "the gold answer is empty (an empty \\boxed{})")
    else:
        if "answer" in row and boxed is not None and boxed.strip() != value.strip():
            notes.warning("answer_differs", f"'answer' is {value[:60]!r}, the solution's box {boxed[:60]!r}")
        return value.strip()
    return ""
