"""Reader for GSM8K (Cobbe et al. 2021, arXiv 2110.14168): JSONL with ``question`` and ``answer``.

``answer`` is the worked solution, one step a line, with calculator marks ``<<16-3=13>>``, and ends in
``#### n``, where n may carry thousands separators.
"""

import re

from utils.data.layouts import read_items
from utils.data.reader import Reader
from utils.data.reading import Notes, RawItem, RawRow, usable_rows

FINAL = re.compile(r"#### (-?[0-9.,]+)")  # the official pattern, first match
_NUMBER = re.compile(r"-?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)", re.ASCII)
# What may follow the number on its line without changing it: a sign or words of what is counted.
_UNIT = re.compile(r"\s*[%€£$¢°]?(?:\s+[A-Za-z][A-Za-z .]*)?\s*")
_SCALE = re.compile(r"\b(?:hundred|thousand|million|billion|trillion|dozen|half|and|or|to|point|percent)\b")
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

    def recognises(self, row) -> bool:
        return "question" in row and "####" in str(row.get("answer"))

    def read(self, path, split, required=()):
        items, problems = read_items(self.parts(path), self.markers)
        used = {"id", "question", "answer"}
        return usable_rows(items, problems, split, _check, used, required, _identify), problems

    def closed(self, answer, solution, notes) -> tuple[str, str]:
        """Answer and solution, the latter ending in ``#### answer``; notes an error where they disagree."""
        stated = FINAL.findall(solution)
        try:
            answer = gold_number(answer)
        except ValueError:
            message = f"'answer' must be a number in gsm8k's form, found {answer[:40]!r}"
            notes.error("unparsable_gold", message)
            return answer, solution
        if not stated:
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


def gold_number(text: str) -> str:
    """The number that a gold states, without thousands separators, from a solution that ends in ``#### n`` or
    from n alone. Raises ValueError where there is none, or where it is only a part of what stands there: the
    official pattern reads 1 in "#### 1/2", 10 in "#### 10:30" and 1234 in "#### 12,34"."""
    found = FINAL.search(text)
    stated = found[1] if found else "" if "####" in text else text.strip()
    if not _NUMBER.fullmatch(stated.replace(",", "")):
        raise ValueError(f"gold answer {text[-60:]!r} is not a number")
    rest = text[found.end() :].partition("\n")[0] if found else ""
    if not _NUMBER.fullmatch(stated) or not _UNIT.fullmatch(rest) or _SCALE.search(rest):
        raise ValueError(
            f"gold answer {(stated + rest)[:60]!r} would be read in part, as {stated.replace(',', '')}"
        )
    return stated.replace(",", "")


def _identify(row: dict, notes: Notes) -> None:
    if isinstance(row.get("id"), str) and row["id"].strip():
        notes.id = row["id"]


def _check(item: RawItem, notes: Notes) -> RawRow | None:
    question, solution = notes.text(item.value, "question"), notes.text(item.value, "answer")
    if notes.failed:
        return None
    found = FINAL.findall(solution)
    try:
        answer = gold_number(solution if found else "####")
    except ValueError as error:
        missing = f"no number after '####' at the end of 'answer': {solution[-60:]!r}"
        notes.error("unparsable_gold", str(error) if found else missing)
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
