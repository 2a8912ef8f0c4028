"""Reader for GSM8K (Cobbe et al. 2021, arXiv 2110.14168): JSONL with ``question`` and ``answer``.

``answer`` is the worked solution, one step a line, with calculator marks ``<<16-3=13>>``, and ends in
``#### n``, where n may carry thousands separators.
"""

import re

from utils.data.reader import Reader
from utils.data.reading import Notes, RawItem, RawRow, read_jsonl_items, usable_rows

FINAL = re.compile(r"#### (-?[0-9.,]+)")  # the official pattern, first match
NUMBER = re.compile(r"-?(\d+\.?\d*|\.\d+)")
_MARK = re.compile(r"<<[^<>\n]*>>")


class Gsm8kReader(Reader):
    """GSM8K. ``answer`` is the number after ``####`` without thousands separators, ``level`` the number of
    solution steps (lines)."""

    name = "gsm8k"
    files = {
        "train": ("train.jsonl", "grade_school_math/data/train.jsonl"),
        "val": ("val.jsonl",),
        "test": ("test.jsonl", "grade_school_math/data/test.jsonl"),
    }

    def read(self, path, split, required=()):
        items, problems = read_jsonl_items(path)
        used = {"id", "question", "answer"}
        return usable_rows(items, problems, split, _check, used, required, _identify), problems

    def closed(self, answer, solution, notes) -> tuple[str, str]:
        """Answer and solution, the latter ending in ``#### answer``; notes an error where they disagree."""
        answer = answer.replace(",", "")
        stated = FINAL.findall(solution)
        if not NUMBER.fullmatch(answer):
            message = f"'answer' must be a number in gsm8k's form, found {answer[:40]!r}"
            notes.error("unparsable_gold", message)
        elif not stated:
            solution = f"{solution}\n#### {answer}".strip()
        elif stated[0].replace(",", "") != answer:
            notes.error("two_answers", f"'answer' is {answer}, and 'solution' ends in #### {stated[0]}")
        return answer, solution

    def target_text(self, row, config) -> str:
        """The worked solution, ending in ``#### n``; with or without the calculator marks."""
        return row.solution if config.calculator_marks else strip_marks(row.solution)


READER = Gsm8kReader()


def strip_marks(solution: str) -> str:
    """The solution without calculator marks: "16-3 = <<16-3=13>>13" becomes "16-3 = 13"."""
    return _MARK.sub("", solution)


def _identify(row: dict, notes: Notes) -> None:
    if isinstance(row.get("id"), str) and row["id"].strip():
        notes.id = row["id"]


def _check(item: RawItem, notes: Notes) -> RawRow | None:
    question, solution = notes.text(item.value, "question"), notes.text(item.value, "answer")
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
    traits = {"answer with thousands separators": "," in found[0], "calculator marks": _MARK.search(solution)}
    return item.as_row(
        notes.id,
        question=question.strip(),
        answer=answer,
        solution=solution.strip(),
        level=sum(bool(line.strip()) and not line.startswith("####") for line in solution.split("\n")),
        traits=tuple(name for name, present in traits.items() if present),
    )
