"""Rows of the user's own data set, by one function: ``read(path, split)`` of a reader (docs/extending.md).

The function yields a mapping per row, with what the data set's form needs:

    question, answer                every form; the answer as text or number
    solution                        gsm8k, math: worked solution to teach; the closing line with the answer
                                    (``#### 18``, ``\\boxed{18}``) is added where it has none
    program                         finqa: the gold program, which must give the answer; optional: table (rows
                                    of cells), pre_text, post_text, evidence, demonstration, report (the page
                                    that a row is from: rows of one page are never split over train and val)
    id, level, type                 optional; level is a whole number (finqa: the steps, where not given)

Any other key is an error, for a typing slip would lose a field in silence. A row that cannot be used becomes
a problem of the data report; a reader that fails stops the stage.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from utils.data.boxed import last_boxed
from utils.data.readers import finqa
from utils.data.readers.gsm8k import FINAL, NUMBER
from utils.data.reading import (
    FILE,
    Notes,
    Problem,
    RawItem,
    RawRow,
    check_required,
    check_scalars,
    describe,
    usable_rows,
)
from utils.frame.files import UserError, shown
from utils.frame.typed_settings import suggestion
from utils.frame.user_code import Function, load_function, read_source

FUNCTION = "read"
_COMMON = ("id", "question", "answer", "level", "type")
KEYS = {
    "gsm8k": (*_COMMON, "solution"),
    "math": (*_COMMON, "solution"),
    "finqa": (*_COMMON, "program", "demonstration", "evidence", "table", "pre_text", "post_text", "report"),
}


def read_own(
    path: Path, split: str, reader: Path, form: str, required: tuple[str, ...] = ()
) -> tuple[list[RawRow], list[Problem]]:
    """The usable rows that ``reader`` finds in the raw file of a split, and all problems.

    Rows without an id are called ``<split>-<row>``, counting from 0 over what the reader yields.
    Raises UserError naming file and line where the reader fails, or yields what is no mapping.
    """
    problems: list[Problem] = []
    rows = enumerate(_rows(path, split, reader))
    items = [RawItem(path.name, number, f"row {number}", row) for number, row in rows]
    if not items:
        message = f"{shown(reader)} yields no rows of it"
        return [], [Problem(path.name, FILE, "", "error", "no_rows", message)]
    check = partial(_check, form=form, required=required)
    return usable_rows(items, problems, split, check), problems


def _rows(path: Path, split: str, reader: Path) -> Iterable[dict]:
    where = shown(reader)
    read: Function = load_function(read_source(reader), where, FUNCTION, ("path", "split"))
    found = read(path, split)
    if isinstance(found, Mapping | str | bytes) or not isinstance(found, Iterable):
        raise UserError(f"{where}: {FUNCTION}() must yield a mapping per row, found {describe(found)}")
    rows = iter(found)
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except (Exception, SystemExit) as error:  # a generator runs, and fails, only here
            raise read.fault(error) from None
        if not isinstance(row, Mapping):
            raise UserError(f"{where}: {FUNCTION}() must yield a mapping per row, found {describe(row)}")
        yield dict(row)


def _check(item: RawItem, notes: Notes, form: str, required: tuple[str, ...]) -> RawRow | None:
    row = item.value
    if unknown := [key for key in row if key not in KEYS[form]]:
        hint = suggestion(str(unknown[0]), KEYS[form])
        notes.error("unknown_key", f"'{unknown[0]}' is no key of a row in {form}'s form{hint}")
        return None
    if isinstance(row.get("id"), int) and not isinstance(row["id"], bool):
        row["id"] = str(row["id"])
    if row.get("id") is not None:
        notes.id = notes.text(row, "id") or notes.id
    check_scalars(notes, set(KEYS[form]))
    check_required(notes, row, required)
    level, kind = row.get("level"), row.get("type") or ""
    if level is not None and (isinstance(level, bool) or not isinstance(level, int)):
        notes.error("wrong_type", f"'level' must be a whole number, found {describe(level)}")
    if not isinstance(kind, str):
        notes.error("wrong_type", f"'type' must be text, found {describe(kind)}")
    if notes.failed:
        return None
    if form == "finqa":
        return _check_finqa(item, notes, level)
    question, answer = notes.text(row, "question"), _answer(row, notes)
    solution = row.get("solution") or ""
    if not isinstance(solution, str):
        notes.error("wrong_type", f"'solution' must be text, found {describe(solution)}")
    if notes.failed:
        return None
    answer, solution = (_closed_gsm8k if form == "gsm8k" else _closed_math)(answer, solution.strip(), notes)
    if notes.failed:
        return None
    return RawRow(
        file=item.file,
        row=item.row,
        place=item.place,
        id=notes.id,
        question=question.strip(),
        answer=answer,
        solution=solution,
        level=level,
        type=kind,
    )


def _check_finqa(item: RawItem, notes: Notes, level: int | None) -> RawRow | None:
    """The row, checked as one of FinQA's own."""
    row = item.value
    context = {"pre_text": [], "post_text": [], "table": []} | {
        key: row[key] for key in ("pre_text", "post_text", "table") if row.get(key) is not None
    }
    gold = {key: row[key] for key in ("question", "program", "demonstration", "evidence") if key in row}
    gold |= {"exe_ans": row.get("answer"), "family": row.get("type")}
    whole = {"id": notes.id, "filename": row.get("report"), **context, "qa": gold}
    found = finqa.check_row(replace(item, value=whole), notes)
    if found is None:
        return None
    return replace(found, level=found.level if level is None else level, traits=())


def _answer(row: dict[str, Any], notes: Notes) -> str:
    """The gold answer as text; notes an error where there is none."""
    value = row.get("answer")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(int(value) if isinstance(value, float) and value.is_integer() else value)
    return notes.text(row, "answer").strip()


def _closed_gsm8k(answer: str, solution: str, notes: Notes) -> tuple[str, str]:
    """Answer and solution, the latter ending in ``#### answer``; notes an error where they disagree."""
    answer = answer.replace(",", "")
    if not NUMBER.fullmatch(answer):
        notes.error("unparsable_gold", f"'answer' must be a number in gsm8k's form, found {answer[:40]!r}")
        return answer, solution
    stated = FINAL.findall(solution)
    if not stated:
        return answer, f"{solution}\n#### {answer}".strip()
    if stated[0].replace(",", "") != answer:
        notes.error("two_answers", f"'answer' is {answer}, and 'solution' ends in #### {stated[0]}")
    return answer, solution


def _closed_math(answer: str, solution: str, notes: Notes) -> tuple[str, str]:
    """Answer and solution, the latter ending in ``\\boxed{answer}``; notes an error where they disagree."""
    stated = last_boxed(solution)
    if stated is None:
        return answer, f"{solution}\n\\boxed{{{answer}}}".strip()
    if stated.strip() != answer:
        notes.error("two_answers", f"'answer' is {answer[:40]!r}, and 'solution' boxes {stated[:40]!r}")
    return answer, solution
