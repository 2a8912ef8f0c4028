r"""MATH answers: the last ``\boxed``, read whole into a tree and compared by value (docs/grading.md)."""

import re
from decimal import Decimal
from functools import lru_cache

from utils.data.boxed import all_boxed, boxed_list, last_boxed
from utils.data.records import Record
from utils.frame.files import UserError
from utils.grading.answer_equality import answers_equal
from utils.grading.expression_values import Undecided
from utils.grading.latex_atoms import Node, Unreadable
from utils.grading.latex_reader import phrases, read
from utils.grading.latex_spelling import plain_latex, undelimited
from utils.grading.task import Grade, Task, UnitCase, place_of, relative_error
from utils.grading.tasks.gsm8k import normalize_number
from utils.grading.worker import WorkerFailure

MAX_ANSWER_CHARS = 1000  # the longest gold answer of MATH has 159 characters


def normalize_answer(text: str) -> str:
    r"""One spelling of an answer, for voting and for what cannot be read: see ``plain_latex``; besides, no
    quotes around words, no blanks next to symbols, no closing period."""
    if len(text) > MAX_ANSWER_CHARS:
        return text.strip()
    text = plain_latex(text).replace('"', "").replace("~", " ")
    text = re.sub(r"\s+", " ", text).strip().removesuffix(".")
    return re.sub(r"(?<!\w) | (?!\w)", "", text)


def math_equal(gold: str, answer: str) -> bool:
    r"""Whether two answers (contents of ``\boxed``) are the same mathematical object.

    Equal spellings are equal; a gold in words is compared as words; everything else by what it says, where
    both can be read whole. Empty equals nothing, not even empty. Raises worker.WorkerFailure where comparing
    would cost too much, including an answer above MAX_ANSWER_CHARS.
    """
    if not gold.strip() or not answer.strip():
        return False
    if len(answer) > MAX_ANSWER_CHARS or len(gold) > MAX_ANSWER_CHARS:
        raise WorkerFailure("answer too long")
    if gold == answer:
        return True
    plain_gold, plain_answer = normalize_answer(gold), normalize_answer(answer)
    if not plain_gold or not plain_answer:
        return False
    if plain_gold == plain_answer:
        return True
    gold_tree = _tree(gold.removeprefix(r"\approx"))
    if gold_tree is None:
        return False
    if gold_tree[0] == "words" or (gold_tree[0] in ("list", "and", "or") and _has_words(gold_tree[1])):
        return phrases(gold) == phrases(answer)
    answer_tree = _tree(answer)
    try:
        return answer_tree is not None and answers_equal(gold_tree, answer_tree)
    except (Undecided, RecursionError) as error:
        raise WorkerFailure(f"not compared: {error}") from None


def plain_decimal(answer: str) -> Decimal | None:
    r"""The value of an answer that is one decimal number, commas only as thousands separators.

    "1,234" and "\$1,234." are numbers, "4,6" is a list. None for anything else.
    """
    if len(answer) > MAX_ANSWER_CHARS:
        return None
    text = normalize_answer(undelimited(answer)).removeprefix("$").replace("{,}", ",")
    number = re.fullmatch(r"-?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]*)?|-?[0-9.]+", text)
    return normalize_number(text) if number else None


@lru_cache(maxsize=8192)
def _tree(text: str) -> Node | None:
    try:
        return read(text)
    except Unreadable:
        return None


def _has_words(items: tuple[Node, ...]) -> bool:
    return any(item[0] == "words" for item in items)


def is_boxed_one_by_one(record: Record) -> bool:
    """Whether the gold is a list whose parts the solution boxes one by one; an answer may do so as well."""
    gold = record.target_answer
    return gold != last_boxed(record.target_text) and gold == boxed_list(record.target_text)


class MathTask(Task):
    r"""MATH (Hendrycks et al. 2021, arXiv 2103.03874): the last ``\boxed`` of a worked solution."""

    name = "math"
    measures = {"equality_accuracy": "equal"}

    def grade(self, record, completion, required_fields=(), program_accuracy=True) -> Grade:
        gold, answer = record.target_answer, last_boxed(completion)
        if answer is not None and is_boxed_one_by_one(record) and len(all_boxed(completion)) > 1:
            answer = boxed_list(completion)
        if not gold.strip():
            raise UserError(f"{place_of(record)}: the gold answer is empty")
        correct, failure = False, "wrong_value"
        try:
            correct = answer is not None and math_equal(gold, answer)
        except WorkerFailure:
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
