"""Reader for GSM8K (Cobbe et al. 2021, arXiv 2110.14168): JSONL with ``question`` and ``answer``.

``answer`` is the worked solution, one step a line, with calculator marks ``<<16-3=13>>``, and ends in
``#### n``, where n may carry thousands separators.
"""

import re
from pathlib import Path

from utils.data.reading import (
    Notes,
    Problem,
    RawItem,
    RawRow,
    check_required,
    check_scalars,
    describe,
    read_jsonl_items,
    usable_rows,
)

FINAL = re.compile(r"#### (-?[0-9.,]+)")  # the official pattern, first match
NUMBER = re.compile(r"-?(\d+\.?\d*|\.\d+)")
_MARK = re.compile(r"<<[^<>\n]*>>")


def read_gsm8k(
    path: Path, file: str, split: str, required: tuple[str, ...] = ()
) -> tuple[list[RawRow], list[Problem]]:
    """The usable rows of one split and all problems found in it.

    Rows have no id of their own and are called ``<split>-<row>``, counting from 0. ``answer`` is the
    number after ``####`` without thousands separators; ``level`` the number of solution steps (lines).
    """
    items, problems = read_jsonl_items(path, file)
    return usable_rows(items, problems, split, lambda item, notes: _check(item, notes, required)), problems


def strip_marks(solution: str) -> str:
    """The solution without calculator marks: "16-3 = <<16-3=13>>13" becomes "16-3 = 13"."""
    return _MARK.sub("", solution)


def _check(item: RawItem, notes: Notes, required: tuple[str, ...]) -> RawRow | None:
    row = item.value
    if not isinstance(row, dict):
        notes.error("not_an_object", f"expected an object, found {describe(row)}")
        return None
    if isinstance(row.get("id"), str) and row["id"].strip():
        notes.id = row["id"]
    check_scalars(notes, {"id", "question", "answer"})
    check_required(notes, row, required)
    question = notes.text(row, "question")
    solution = notes.text(row, "answer")
    if notes.failed:
        return None
    found = FINAL.findall(solution)
    answer = found[0].replace(",", "") if found else ""
    if not NUMBER.fullmatch(answer):
        notes.error("unparsable_gold", f"no number after '####' at the end of 'answer': {solution[-60:]!r}")
        return None
    if len(found) > 1:
        notes.warning("several_answers", f"{len(found)} numbers after '####'; the first, {found[0]}, counts")
    if "<<" in strip_marks(solution):
        notes.warning("broken_mark", "a calculator mark '<<…>>' is not closed")
    steps = [line for line in solution.split("\n") if line.strip() and not line.startswith("####")]
    return RawRow(
        file=item.file,
        row=item.row,
        place=item.place,
        id=notes.id,
        question=question.strip(),
        answer=answer,
        solution=solution.strip(),
        level=len(steps),
        traits=tuple(
            name
            for name, present in (
                ("answer with thousands separators", "," in found[0]),
                ("calculator marks", _MARK.search(solution) is not None),
            )
            if present
        ),
    )
