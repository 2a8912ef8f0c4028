"""One grade for a completion of any data set, used by rewards, training, candidates and evaluation alike."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from utils.data.boxed import last_boxed
from utils.data.records import Record
from utils.frame.files import UserError
from utils.grading.equivalence import program_match
from utils.grading.execute import (
    Value,
    execute,
    execution_match,
    parse_gold_value,
    tolerant_match,
)
from utils.grading.program import tokenize_program
from utils.grading.tasks import gsm8k
from utils.grading.tasks.hendrycks_math import math_equal, plain_decimal
from utils.grading.worker import WorkerFailure, WorkerTimeout

PROGRAM_DATASETS = ("finqa", "sample")
REQUIRED_FIELDS = {"finqa": ("program", "answer"), "sample": ("program",)}
PLACEHOLDERS = ("", "n/a", "na", "none", "null", "unknown")  # a field holding one of these is not filled
MAX_JSON_CHARS = 20_000


@dataclass(frozen=True)
class Grade:
    """What a completion is worth.

    correct: the data set's official accuracy (FinQA execution, GSM8K strict, MATH equality).
    tolerant: a more lenient score, reported apart (FinQA: relative 1e-3 and percent scale; GSM8K: flexible
    extraction; MATH: the same as ``correct``). value: what was graded, None where there is nothing.
    relative_error: |value - gold| / |gold| of two numbers, None for anything else. parsed: the text fields
    of a JSON completion. format_error: "" where the format is valid. failure: why it is not correct, ""
    where it is. official: the official measures by name, and the flag ``program_match_only`` (programs are
    the same but the prediction does not execute to the gold answer, where the official evaluator aborts).
    """

    correct: bool
    tolerant: bool
    value: Value | None
    relative_error: float | None
    format_error: str
    failure: str
    parsed: dict[str, str] = field(default_factory=dict)
    official: dict[str, bool] = field(default_factory=dict)

    @property
    def format_valid(self) -> bool:
        """The completion has the form that was asked for, whatever it says."""
        return not self.format_error


def grade(
    record: Record,
    completion: str,
    required_fields: Sequence[str] = (),
    program_accuracy: bool = True,
) -> Grade:
    """Grade a decoded completion (no special tokens) against ``record``'s gold.

    required_fields: JSON fields that a program completion must fill; empty for the data set's own
    (``REQUIRED_FIELDS``). program_accuracy: also compute FinQA's, which may need SymPy. Whatever the
    completion holds, it never raises for it; an unusable gold raises UserError naming the record.
    """
    if record.form in PROGRAM_DATASETS:
        fields, format_error = parse_completion(completion, required_fields or REQUIRED_FIELDS[record.form])
        return _grade_program(record, fields, format_error, program_accuracy)
    if record.form == "gsm8k":
        return _grade_gsm8k(record, completion)
    if record.form == "math":
        return _grade_math(record, completion)
    raise UserError(f"{_name(record)}: no grader for data set '{record.dataset}'")


def grade_program_tokens(record: Record, tokens: list[str], program_accuracy: bool = True) -> Grade:
    """Grade a prediction in FinQA's official format, a list of tokens closed by "EOF"."""
    return _grade_tokens(record, tokens, {}, "", program_accuracy)


def parse_completion(completion: str, required_fields: Sequence[str]) -> tuple[dict[str, str], str]:
    """Read a completion that must be one JSON object, blanks around it aside.

    Returns its text fields and what is wrong with its form: "" (nothing), "not_json" (not an object, text
    before or after it, a repeated key, NaN; then there are no fields) or "missing_field:<name>" (absent,
    no text, or a placeholder like "N/A").
    """
    if len(completion) > MAX_JSON_CHARS:
        return {}, "too_long"
    try:
        value = json.loads(
            completion.strip(), object_pairs_hook=_unique_keys, parse_constant=_reject_constant
        )
    except (ValueError, RecursionError):
        return {}, "not_json"
    if not isinstance(value, dict):
        return {}, "not_json"
    fields = {name: text for name, text in value.items() if isinstance(text, str)}
    for name in required_fields:
        if fields.get(name, "").strip().lower() in PLACEHOLDERS:
            return fields, f"missing_field:{name}"
    return fields, ""


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("repeated key")
    return dict(pairs)


def _reject_constant(name: str) -> float:
    raise ValueError(f"{name} is not valid JSON")


def _name(record: Record) -> str:
    return f"{record.source} ({record.id})" if record.source else record.id


def _grade_program(
    record: Record, fields: dict[str, str], format_error: str, program_accuracy: bool
) -> Grade:
    if "program" in fields:
        tokens = tokenize_program(fields["program"])
        return _grade_tokens(record, tokens, fields, format_error, program_accuracy)
    _program_gold(record)  # an unusable gold is an error even where nothing is compared with it
    failure = format_error or "missing_field:program"
    official = {"execution_match": False} | ({"program_match": False} if program_accuracy else {})
    return Grade(False, False, None, None, failure, failure, fields, official)


def _program_gold(record: Record) -> Value:
    try:
        return parse_gold_value(record.target_answer)
    except ValueError as error:
        raise UserError(f"{_name(record)}: {error}") from None


def _grade_tokens(
    record: Record, tokens: list[str], fields: dict[str, str], format_error: str, program_accuracy: bool
) -> Grade:
    gold = _program_gold(record)
    execution = execute(tokens, record.table)
    correct = execution_match(execution, gold)
    tolerant = tolerant_match(execution.value, gold)
    official = {"execution_match": correct}
    if program_accuracy:
        try:
            same = program_match(tokens, tokenize_program(record.target_program))
        except ValueError as error:
            raise UserError(f"{_name(record)}: {error}") from None
        official |= {"program_match": same, "program_match_only": same and not correct}
    if correct:
        failure = ""
    elif execution.error is not None:
        failure = f"program:{execution.error.value}"
    else:
        failure = "wrong_value"
    return Grade(
        correct=correct,
        tolerant=tolerant,
        value=execution.value,
        relative_error=_relative_error(execution.value, gold),
        format_error=format_error,
        failure=failure,
        parsed=fields,
        official=official,
    )


def _relative_error(value: object, gold: object) -> float | None:
    """|value - gold| / |gold|; of a zero gold it is 0 where met and undefined otherwise."""
    if not isinstance(value, float) or not isinstance(gold, float):
        return None
    if value == gold:
        return 0.0
    error = abs(value - gold) / abs(gold) if gold else float("inf")
    return error if error < float("inf") else None


def _number(text: str | None) -> float | None:
    number = gsm8k.normalize_number(text)
    return None if number is None else float(number)


def _decimal(answer: str | None) -> float | None:
    number = plain_decimal(answer) if answer else None
    return None if number is None else float(number)


def _grade_gsm8k(record: Record, completion: str) -> Grade:
    try:
        gold = gsm8k.parse_gold(record.target_answer)
    except ValueError as error:
        raise UserError(f"{_name(record)}: {error}") from None
    strict = gsm8k.strict_match(completion, gold)
    flexible = gsm8k.flexible_match(completion, gold)
    value = _number(gsm8k.extract_flexible(completion))
    marked = gsm8k.extract_strict(completion) is not None
    failure = "wrong_value"
    if strict:
        failure = ""
    elif flexible:
        failure = "wrong_form"
    elif value is None:
        failure = "no_number"
    return Grade(
        correct=strict,
        tolerant=flexible,
        value=value,
        relative_error=_relative_error(value, _number(gold)),
        format_error="" if marked else "no_answer_mark",
        failure=failure,
        official={"strict_match": strict, "flexible_match": flexible},
    )


def _grade_math(record: Record, completion: str) -> Grade:
    gold = record.target_answer
    if not gold.strip():
        raise UserError(f"{_name(record)}: the gold answer is empty")
    answer = last_boxed(completion)
    correct, failure = False, "wrong_value"
    try:
        correct = answer is not None and math_equal(gold, answer)
    except WorkerTimeout:
        failure = "timeout"
    except WorkerFailure:
        failure = "not_comparable"
    if not answer:
        failure = "no_box" if answer is None else "empty_box"
    return Grade(
        correct=correct,
        tolerant=correct,
        value=answer,
        relative_error=_relative_error(_decimal(answer), _decimal(gold)),
        format_error="" if answer else failure,
        failure="" if correct else failure,
        official={"equal": correct},
    )
