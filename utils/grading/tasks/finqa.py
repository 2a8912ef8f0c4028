"""FinQA (Chen et al. 2021, arXiv 2109.00122): the answer is a program in a JSON object, executed and compared
by the released evaluator's rules (docs/grading.md)."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import ClassVar

from utils.data.reading import RawRow
from utils.data.records import Record
from utils.frame.files import UserError
from utils.grading.derived_evidence import derived_places
from utils.grading.equivalence import program_match
from utils.grading.execute import execute, execution_match, is_close, parse_gold_value, tolerant_match
from utils.grading.failure_reasons import ROUNDING, is_scale_slip
from utils.grading.program import (
    TABLE_OPERATIONS,
    canonical_operand,
    is_reference,
    plain_number,
    program_keys,
    program_steps,
    step_overlap,
    tokenize_program,
)
from utils.grading.reasoning_quality import step_coverage, step_order
from utils.grading.task import Grade, Task, UnitCase, Value, place_of, relative_error

PLACEHOLDERS = ("", "n/a", "na", "none", "null", "unknown")  # a field holding one of these is not filled
MAX_JSON_CHARS = 20_000
# The constants of FinQA's language, as its programs and the official list spell them.
CONSTANTS = frozenset(
    ["const_m1", *(f"const_{n}" for n in (*range(1, 11), 100, 1000, *(10**k for k in range(4, 10))))]
)

Steps = Sequence[tuple[str, str, str]]  # operation and its two arguments, as written


class FinqaTask(Task):
    """FinQA's rules; the embedded set (sample.py) has them too."""

    name = "finqa"
    measures = {
        "execution_accuracy": "execution_match",
        "program_accuracy": "program_match",
        "tolerant_accuracy": "tolerant",
    }
    reasoning_measures = ("step_coverage", "step_order", "operand_grounding", "answer_support")
    response_fields: ClassVar[tuple[str, ...]] = ("program", "answer")

    def grade(self, record, completion, required_fields=(), program_accuracy=True) -> Grade:
        fields, format_error = parse_completion(completion, required_fields or self.required_fields(record))
        if "program" in fields:
            tokens = tokenize_program(fields["program"])
            return _grade_tokens(record, tokens, fields, format_error, program_accuracy)
        _gold_value(record)  # an unusable gold is an error even where nothing is compared with it
        failure = format_error or "missing_field:program"
        official = {"execution_match": False} | ({"program_match": False} if program_accuracy else {})
        return Grade(False, False, None, None, failure, failure, parsed=fields, official=official)

    def required_fields(self, record: Record) -> tuple[str, ...]:
        taught = _taught_fields(record.target_text)
        return tuple(name for name in self.response_fields if name in taught) or self.response_fields

    def grade_program(self, record, tokens) -> Grade:
        return _grade_tokens(record, tokens, {}, "", True)

    def gold_fault(self, row: RawRow) -> str:
        execution = execute(tokenize_program(row.program), [list(cells) for cells in row.table])
        if execution_match(execution, parse_gold_value(row.answer)):
            return ""
        if execution.error is not None:
            return f"the gold program cannot be executed ({execution.error.value}): {row.program[:80]!r}"
        return f"the gold program gives {execution.value}, but exe_ans is {row.answer}: {row.program[:80]!r}"

    def evidence(self, row: RawRow) -> tuple[str, ...]:
        return derived_places(row)

    def gold_completion(self, record) -> str:
        return json.dumps(_gold_fields(record), ensure_ascii=False)

    def partial_credit(self, record, graded) -> float:
        return step_overlap(_steps(graded), _gold_steps(record))

    def reason(self, record, graded, response, truncated) -> tuple[str, str]:
        if graded.program is None:
            if truncated:
                return "cut_off", ""
            missing = graded.format_error.startswith("missing_field")
            return "missing_program" if missing else "invalid_json", graded.format_error
        if graded.value is None:
            return "invalid_program", graded.failure.removeprefix("program:")
        return program_failure(_steps(graded), _gold_steps(record), graded.value, _gold_value(record)), ""

    def reasoning(self, record, graded, response) -> dict[str, float | None]:
        steps = [] if graded is None else _steps(graded)
        own, gold = program_keys(steps), program_keys(_gold_steps(record))
        values = (
            step_coverage(own, gold),
            step_order(own, gold),
            grounded_steps(record.input_text, steps) if steps else None,
            None if graded is None else _answer_support(graded),
        )
        return dict(zip(self.reasoning_measures, values, strict=True))

    def reasoning_score(self, record, completion) -> float:
        return grounded_operands(record.input_text, completion)

    def unit_cases(self, record, required_fields, tolerance) -> list[UnitCase]:
        gold, whole = _gold_fields(record), self.gold_completion(record)
        steps = record.target_program.count(")")

        def with_program(program: str) -> str:
            return json.dumps(gold | {"program": program}, ensure_ascii=False)

        partial = {"program_partial": Fraction(steps, steps + 1)}
        cases: list[UnitCase] = [
            ("text_after", whole + " done", {"format_penalty": 1}),
            ("no_value", with_program("divide(const_1, 0)"), {}),
            ("unclosed", whole[:-1], {"format_penalty": 1}),
            ("placeholder", json.dumps(dict.fromkeys(gold, "N/A")), {"format_penalty": 1}),
            ("refers_to_itself", with_program(f"{record.target_program}, exp(#{steps}, 2)"), partial),
        ]
        for name in required_fields:
            rest = {key: text for key, text in gold.items() if key != name}
            paid: dict[str, int | Fraction] = {} if name == "program" else {"exact_match": 1}
            cases.append((f"without_{name}", json.dumps(rest), paid | {"format_penalty": 1}))
        if record.target_answer in ("yes", "no"):
            opposite = "greater(1, 0)" if record.target_answer == "no" else "greater(0, 1)"
            return [*cases, ("opposite", with_program(opposite), {})]
        value = float(record.target_answer)
        if abs(value) < 1e-3:
            return cases  # rounding to 5 places would hide the factor
        for name, factor in (("twice", "2"), ("near", "1.02")):
            program = f"{record.target_program}, multiply(#{steps - 1}, {factor})"
            near = abs(round(value * float(factor), 5) - value) <= tolerance * abs(value)
            cases.append((name, with_program(program), {"numeric_match": 1} if near else partial))
        return cases


TASK = FinqaTask()


# ------------------------------------------------------------------------------------------------- grading


def parse_completion(completion: str, required_fields: Sequence[str]) -> tuple[dict[str, str], str]:
    """Read a completion that must be one JSON object, blanks around it aside.

    Returns its text fields and what is wrong with its form: "" (nothing), "too_long", "not_json" (not an
    object, text before or after it, a repeated key, NaN; then there are no fields) or "missing_field:<name>"
    (absent, no text, or a placeholder like "N/A").
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


def _grade_tokens(
    record: Record, tokens: list[str], fields: dict[str, str], format_error: str, program_accuracy: bool
) -> Grade:
    gold = _gold_value(record)
    execution = execute(tokens, record.table)
    correct = execution_match(execution, gold)
    official = {"execution_match": correct}
    if program_accuracy:
        try:
            same = program_match(tokens, tokenize_program(record.target_program))
        except ValueError as error:
            raise UserError(f"{place_of(record)}: {error}") from None
        official |= {"program_match": same, "program_match_only": same and not correct}
    if correct:
        failure = ""
    elif execution.error is not None:
        failure = f"program:{execution.error.value}"
    else:
        failure = "wrong_value"
    return Grade(
        correct=correct,
        tolerant=tolerant_match(execution.value, gold),
        value=execution.value,
        relative_error=relative_error(execution.value, gold),
        format_error=format_error,
        failure=failure,
        answer="" if execution.value is None else str(execution.value),
        parsed=fields,
        program=tuple(tokens),
        official=official,
    )


def _gold_value(record: Record) -> Value:
    try:
        return parse_gold_value(record.target_answer)
    except ValueError as error:
        raise UserError(f"{place_of(record)}: {error}") from None


def _gold_fields(record: Record) -> dict[str, str]:
    gold = {"program": record.target_program, "answer": record.target_answer}
    return {name: gold.get(name, text) for name, text in json.loads(record.target_text).items()}


@lru_cache(maxsize=4096)
def _taught_fields(target_text: str) -> tuple[str, ...]:
    try:
        return tuple(json.loads(target_text))
    except ValueError:
        return ()


def _steps(graded: Grade) -> Steps:
    return program_steps(list(graded.program or ()))


def _gold_steps(record: Record) -> Steps:
    return program_steps(tokenize_program(record.target_program))


# ------------------------------------------------------------------------------------- reasons, reasoning


def program_failure(steps: Steps, gold_steps: Steps, value: Value, gold_value: Value) -> str:
    """Reason for a valid program whose value is not the gold's.

    Steps whose result never reaches the last step do not count on either side, nor does the order of
    independent steps: programs are compared by the multisets of their operations and operands.
    """
    if is_close(value, gold_value, ROUNDING):
        return "rounding"
    if is_scale_slip(value, gold_value):
        return "scale_or_percent"
    if list(steps) == list(gold_steps):
        return "gold_inconsistent"
    operations, operands = _contents(steps)
    gold_operations, gold_operands = _contents(gold_steps)
    if operations == gold_operations:
        return "operand_order" if operands == gold_operands else "wrong_operand"
    if operations.total() == gold_operations.total() and operands == gold_operands:
        return "wrong_operation"
    if operations < gold_operations:
        return "missing_step"
    if operations > gold_operations:
        return "extra_step"
    return "other_program"


def _contents(steps: Steps) -> tuple[Counter, Counter]:
    """Operations and operands (references aside) of the steps that the last one rests on."""
    used, pending = set(), [len(steps) - 1] if steps else []
    while pending:
        index = pending.pop()
        if index in used or not 0 <= index < len(steps):
            continue
        used.add(index)
        pending += [int(arg[1:]) for arg in steps[index][1:] if is_reference(arg)]
    operations = Counter(steps[index][0] for index in used)
    operands = Counter(
        canonical_operand(arg)
        for index in used
        for arg in steps[index][1:]
        if not is_reference(arg) and arg != "none"
    )
    return operations, operands


def _answer_support(graded: Grade) -> float | None:
    """Whether the ``answer`` field says what the program gives: a number rounded or cut to the decimals that
    are stated, also read as percent where it has the sign. None where one of the two is missing."""
    stated = graded.parsed.get("answer", "").strip()
    if graded.value is None or not stated:
        return None
    if isinstance(graded.value, str):
        return float(stated.lower() == graded.value)
    number = plain_number(stated)
    if number is None:
        return 0.0
    unit = 10.0 ** -(len(stated.rstrip("% ").partition(".")[2]) if "." in stated else 0)
    # Without decimals a number is meant exactly: 3 is no rounding of 3.4. Values have 5 places.
    unit = max(unit if "." in stated else 0.0, 1e-5)
    readings = [(number, unit / 100), (100 * number, unit)] if stated.endswith("%") else [(number, unit)]
    return float(
        any(
            math.isclose(graded.value, value, rel_tol=1e-9, abs_tol=0.999999 * step)
            for value, step in readings
        )
    )


def grounded_operands(report: str, completion: str) -> float:
    """Share of the program's literal operands that ``report`` holds; 0 without a program or literals."""
    fields, _ = parse_completion(completion, ())
    return grounded_steps(report, program_steps(tokenize_program(fields.get("program", ""))))


def grounded_steps(report: str, steps: Steps) -> float:
    """The same of a program's steps. A number counts whatever its sign and thousands separators.

    Constants and references to earlier steps are the language's own and stay out of the share, so that steps
    without literals cannot dilute an invented number; those that do not exist count as invented. Grounded
    operands may be the wrong ones, and one number repeated is enough: pay little for them.
    """
    numbers = report_numbers(report)
    verdicts = []
    for place, (operation, a, b) in enumerate(steps):
        if operation in TABLE_OPERATIONS:
            verdicts.append(bool(a) and _holds(report, a))
            continue
        for operand in (a, b):
            if "#" in operand:
                reference = re.fullmatch(r"#([0-9]{1,2})", operand)
                own = reference is not None and int(reference[1]) < place
            else:
                own = operand in CONSTANTS
            if not own:
                verdicts.append(_size(operand) in numbers)
    return sum(verdicts) / len(verdicts) if any(verdicts) else 0.0


@lru_cache(maxsize=4096)
def report_numbers(report: str) -> frozenset[float]:
    """The sizes (absolute values) of all numbers written in a text, "1,234.5" as 1234.5 and "5%" as 5."""
    found = re.finditer(r"[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+", report)
    sizes = (_size(match[0].rstrip(",")) for match in found)
    return frozenset(size for size in sizes if size is not None)


def _size(text: str) -> float | None:
    """The size of a plain number; None for anything else that Python's float would take."""
    plain = re.fullmatch(r"-?([0-9]{1,20}(?:\.[0-9]{0,20})?|\.[0-9]{1,20})%?", text.replace(",", ""))
    return float(plain[1]) if plain else None


def _holds(text: str, name: str) -> bool:
    """The text holds the name, not as part of a longer word."""
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) is not None
