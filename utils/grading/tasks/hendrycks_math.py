r"""MATH answers: the last ``\boxed``, compared by math-verify in a bounded worker process."""

import re
from decimal import Decimal

from utils.data.boxed import last_boxed
from utils.frame.files import UserError
from utils.grading import worker
from utils.grading.task import Grade, Task, UnitCase, place_of, relative_error
from utils.grading.tasks.gsm8k import normalize_number

MAX_ANSWER_CHARS = 1000  # the longest gold answer of MATH has 159 characters

_WORDS = re.compile(r"\\(?:text|textbf|textit|textrm|mbox|mathrm)\s*\{([^{}]*)\}")


def normalize_answer(text: str) -> str:
    r"""Spelling without meaning removed: ``\left``/``\right``, ``\!``, ``\dfrac`` as
    ``\frac``, ``\text{}`` around words, blanks next to symbols, a closing period."""
    text = re.sub(r"\\(?:left|right)(?![a-zA-Z])", "", text).replace(r"\!", "")
    text = re.sub(r"\\[dt]frac(?![a-zA-Z])", r"\\frac", text)
    text = _WORDS.sub(r"\1", text)
    text = re.sub(r"\s+", " ", text).strip().removesuffix(".")
    return re.sub(r"(?<!\w) | (?!\w)", "", text)


def math_equal(gold: str, answer: str, timeout: float = worker.TIMEOUT_S) -> bool:
    r"""Whether two answers (contents of ``\boxed``) are the same mathematical object.

    Equal spellings are equal; a gold in words is compared as words; everything else is math-verify's
    verdict. Empty equals nothing, not even empty. Raises worker.WorkerTimeout after ``timeout`` seconds and
    worker.WorkerFailure where the comparison fails, including an answer above MAX_ANSWER_CHARS.
    """
    gold, answer = _undelimited(gold), _undelimited(answer)
    if not gold or not answer:
        return False
    if len(answer) > MAX_ANSWER_CHARS or len(gold) > MAX_ANSWER_CHARS:
        raise worker.WorkerFailure("answer too long")
    plain_gold, plain_answer = normalize_answer(gold), normalize_answer(answer)
    if plain_gold and plain_gold == plain_answer:
        return True
    if _in_words(gold):  # as algebra "Evenly" would be a product of letters, equal to "Evelyn"
        return _words(plain_gold) == _words(plain_answer)
    if _has_several_numbers(answer) or re.search(r"(?<!\\)\$", answer):
        return False
    return bool(worker.call("math_equal", timeout, gold=gold, answer=answer))


def plain_decimal(answer: str) -> Decimal | None:
    r"""The value of an answer that is one decimal number, commas only as thousands separators.

    "1,234" and "\$1,234." are numbers, "4,6" is a list. None for anything else.
    """
    if len(answer) > MAX_ANSWER_CHARS:
        return None
    text = normalize_answer(_undelimited(answer)).removeprefix("\\$")
    number = re.fullmatch(r"-?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]*)?|-?[0-9.]+", text)
    return normalize_number(text) if number else None


def _undelimited(text: str) -> str:
    text = text.strip()
    return text[1:-1].strip() if len(text) > 1 and text[0] == text[-1] == "$" else text


def _in_words(gold: str) -> bool:
    match = _WORDS.fullmatch(gold)
    return match is not None and any(char.isalpha() for char in match[1])


def _words(text: str) -> list[str]:
    """Words or option letters of a list in any order, case and parentheses ignored."""
    return sorted(item.strip(" ()").casefold() for item in text.split(","))


def _has_several_numbers(text: str) -> bool:
    """Numbers side by side ("18 19"): math-verify would add them up and find 37."""
    return "\\" not in text and re.search(r"[0-9.]\s+[0-9.]", text) is not None


class MathTask(Task):
    r"""MATH (Hendrycks et al. 2021, arXiv 2103.03874): the last ``\boxed`` of a worked solution."""

    name = "math"
    measures = {"equality_accuracy": "equal"}

    def grade(self, record, completion, required_fields=(), program_accuracy=True) -> Grade:
        gold, answer = record.target_answer, last_boxed(completion)
        if not gold.strip():
            raise UserError(f"{place_of(record)}: the gold answer is empty")
        correct, failure = False, "wrong_value"
        try:
            correct = answer is not None and math_equal(gold, answer)
        except worker.WorkerTimeout:
            failure = "timeout"
        except worker.WorkerFailure:
            failure = "not_comparable"
        if not answer:
            failure = "no_box" if answer is None else "empty_box"
        return Grade(
            correct=correct,
            tolerant=correct,
            value=answer,
            relative_error=relative_error(plain_decimal(answer or ""), plain_decimal(gold)),
            format_error="" if answer else failure,
            failure="" if correct else failure,
            answer=answer or "",
            official={"equal": correct},
        )

    def number(self, answer) -> Decimal | None:
        return plain_decimal(answer)

    def vote(self, answer) -> str:
        number = normalize_number(answer)
        return normalize_answer(answer) if number is None else str(number.normalize())

    def unit_cases(self, record, required_fields, tolerance) -> list[UnitCase]:
        gold, exact, broken = record.target_answer, {"exact_match": 1}, {"format_penalty": 1}
        return [
            ("box_alone", rf"\boxed{{{gold}}}", exact),
            ("nested_box", rf"\boxed{{\boxed{{{gold}}}}}", exact),
            ("last_box_counts", rf"\boxed{{{gold}}}, no: \boxed{{\text{{none of these}}}}", {}),
            ("no_box", f"The answer is ${gold}$.", broken),
            ("unclosed_box", rf"\boxed{{{gold}", broken),
            ("empty_box", r"\boxed{ }", broken),
        ]


TASK = MathTask()
