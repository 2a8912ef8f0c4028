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
from utils.data.reader import Reader
from utils.data.reading import (
    FILE,
    Notes,
    Problem,
    RawItem,
    RawRow,
    describe,
    read_jsonl_items,
    read_object,
    usable_rows,
)

_LEVEL = re.compile(r"(?:Level )?([1-5])")
_USED = {"problem", "level", "type", "subject", "solution", "answer"}


class MathReader(Reader):
    """MATH. Rows without a ``unique_id`` are called ``<split>-<row>``; in folders rows are counted in the
    order of type and number."""

    name = "math"
    files = {
        "train": ("train.jsonl", "train", "MATH/train"),
        "val": ("val.jsonl",),
        "test": ("test.jsonl", "test", "MATH/test"),
    }

    def read(self, path, split, required=()):
        items, problems = (_read_folder if path.is_dir() else read_jsonl_items)(path)
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
