"""Reader for MATH (Hendrycks et al. 2021, arXiv 2103.03874).

Two layouts: JSONL with ``problem, level, type, solution`` and optionally ``answer``; and the original
folders with one file per problem, ``train/<type>/<n>.json``. Where ``answer`` is absent it is the content
of the last brace-balanced ``\\boxed{…}`` of the solution. Two published train problems have ``Level ?``
(read as no level) and two have an empty box (no gold answer: an error).
"""

import re
from collections.abc import Callable
from pathlib import Path

from utils.data.boxed import last_boxed
from utils.data.reading import (
    FILE,
    Notes,
    Problem,
    RawItem,
    RawRow,
    check_required,
    check_scalars,
    describe,
    read_jsonl_items,
    read_object,
    usable_rows,
)

_LEVEL = re.compile(r"(?:Level )?([1-5])")
_USED = {"problem", "level", "type", "subject", "solution", "answer"}


def read_math(
    path: Path, file: str, split: str, required: tuple[str, ...] = ()
) -> tuple[list[RawRow], list[Problem]]:
    """The usable rows of one split and all problems found in it.

    ``path`` is a JSONL file or a folder ``<type>/<n>.json``. Rows without a ``unique_id`` are called
    ``<split>-<row>``, counting from 0 (for folders: in the order of type and number).
    """
    if path.is_dir():
        items, problems = _read_folder(path, file)
    else:
        items, problems = read_jsonl_items(path, file)
    return usable_rows(items, problems, split, lambda item, notes: _check(item, notes, required)), problems


def _read_folder(path: Path, file: str) -> tuple[list[RawItem], list[Problem]]:
    def order(found: Path) -> tuple:
        return (found.parent.name, int(found.stem) if found.stem.isdecimal() else -1, found.stem)

    items: list[RawItem] = []
    problems: list[Problem] = []
    for row, found in enumerate(sorted(path.glob("*/*.json"), key=order)):
        name = f"{file}/{found.parent.name}/{found.name}"
        new_items, new_problems = read_object(found, name, row)
        items += new_items
        problems += new_problems
    if not items and not problems:
        message = "the folder holds no <type>/<n>.json"
        problems.append(Problem(file, FILE, "", "error", "empty_folder", message))
    return items, problems


def _check(item: RawItem, notes: Notes, required: tuple[str, ...]) -> RawRow | None:
    row = item.value
    if not isinstance(row, dict):
        notes.error("not_an_object", f"expected an object, found {describe(row)}")
        return None
    if isinstance(row.get("unique_id"), str) and row["unique_id"].strip():
        notes.id = row["unique_id"]
    check_scalars(notes, _USED)
    check_required(notes, row, required)
    question = notes.text(row, "problem")
    solution = notes.text(row, "solution")
    answer = _answer(row, solution, notes)
    level = _level(row, notes.warning)
    type_ = row.get("type", row.get("subject", ""))
    if not isinstance(type_, str):
        notes.error("wrong_type", f"'type' must be text, found {describe(type_)}")
        return None
    return RawRow(
        file=item.file,
        row=item.row,
        place=item.place,
        id=notes.id,
        question=question.strip(),
        answer=answer,
        solution=solution.strip(),
        level=level,
        type=type_,
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
