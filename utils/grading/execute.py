"""Execute FinQA programs and compare their values by the official rules (see docs/grading.md)."""

import math
import operator
from dataclasses import dataclass
from functools import reduce

from utils.grading.program import (
    TABLE_OPERATIONS,
    ProgramError,
    ProgramFailure,
    ProgramStep,
    parse_steps,
)

ROUND_DIGITS = 5  # only the final value is rounded
TOLERANCE = 1e-3  # relative, of the tolerant score

Value = float | str  # a number, or "yes" / "no"


@dataclass(frozen=True)
class ProgramRun:
    """The value of a program, or the reason why it has none; exactly one of the two is None."""

    value: Value | None
    error: ProgramError | None


def parse_number(text: str) -> float:
    """Read a number: thousands separators dropped, "5%" as 0.05, "const_x" as x ("const_m1" as -1).

    Whatever Python's ``float`` takes passes ("1e3", "1_000", "nan", "inf"); "$5" does not.
    Raises ProgramFailure(BAD_NUMBER).
    """
    text = text.replace(",", "")
    try:
        return float(text)
    except ValueError:
        pass
    try:
        if "%" in text:
            return float(text.replace("%", "")) / 100.0
        if "const" in text:
            text = text.replace("const_", "")
            return -1.0 if text == "m1" else float(text)
    except ValueError:
        pass
    raise ProgramFailure(ProgramError.BAD_NUMBER)


def execute(tokens: list[str], table: list[list[str]]) -> ProgramRun:
    """Run a program over a table (rows of text cells, the first cell being the row's name).

    tokens: program tokens with a closing "EOF" (the last token is dropped unseen). Returns the final
    step's value, rounded to 5 places; never raises.
    """
    try:
        steps = parse_steps(tokens)
        if not steps:
            raise ProgramFailure(ProgramError.EMPTY)
        results: list[Value] = []
        for step in steps:
            results.append(_run_step(step, results, table))
        return ProgramRun(_final(results[-1]), None)
    except ProgramFailure as failure:
        return ProgramRun(None, failure.error)


def _final(value: Value) -> Value:
    if isinstance(value, str):
        return value
    if isinstance(value, complex) or math.isnan(value):
        raise ProgramFailure(ProgramError.NOT_REAL)
    if math.isinf(value):
        raise ProgramFailure(ProgramError.OVERFLOW)
    return round(value, ROUND_DIGITS)


def _run_step(step: ProgramStep, results: list[Value], table: list[list[str]]) -> Value:
    if step.op in TABLE_OPERATIONS:
        return _run_table_step(step, table)
    return _calculate(step.op, _operand(step.a, results), _operand(step.b, results))


def _operand(text: str, results: list[Value]) -> Value:
    if "#" not in text:
        return parse_number(text)
    try:
        index = int(text.replace("#", ""))
    except ValueError:
        raise ProgramFailure(ProgramError.BAD_REFERENCE) from None
    if not 0 <= index < len(results):
        raise ProgramFailure(ProgramError.BAD_REFERENCE)
    return results[index]


def _calculate(op: str, a: Value, b: Value) -> Value:
    if isinstance(a, str) != isinstance(b, str) or (isinstance(a, str) and op != "greater"):
        raise ProgramFailure(ProgramError.TYPE)
    if op == "greater":  # of two yes/no it compares the words, as the official evaluator does
        if isinstance(a, complex) or isinstance(b, complex):
            raise ProgramFailure(ProgramError.NOT_REAL)
        return "yes" if a > b else "no"  # type: ignore[operator]  # both are words, or both numbers
    try:
        return _ARITHMETIC[op](a, b)
    except ZeroDivisionError:
        raise ProgramFailure(ProgramError.DIVISION_BY_ZERO) from None
    except OverflowError:
        raise ProgramFailure(ProgramError.OVERFLOW) from None


_ARITHMETIC = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "divide": operator.truediv,
    "exp": operator.pow,  # of two floats: constant time, bounded size, complex for (-8) ** 0.5
}


def _run_table_step(step: ProgramStep, table: list[list[str]]) -> float:
    if "#" in step.a:
        raise ProgramFailure(ProgramError.BAD_REFERENCE)
    if not all(table):  # a row without a name makes the whole table unreadable
        raise ProgramFailure(ProgramError.BAD_TABLE_ROW)
    rows = {row[0]: row[1:] for row in table}  # of duplicate names the last row wins
    if step.a not in rows:
        raise ProgramFailure(ProgramError.BAD_TABLE_ROW)
    numbers = [_cell_number(cell) for cell in rows[step.a]]
    if step.op == "table_sum":
        return _sum(numbers)
    if not numbers:
        raise ProgramFailure(ProgramError.BAD_TABLE_CELL)
    if step.op == "table_average":
        return _sum(numbers) / len(numbers)
    return max(numbers) if step.op == "table_max" else min(numbers)


def _sum(numbers: list[float]) -> float:
    """Left to right in float64: the built-in compensates from Python 3.12 on and may round otherwise."""
    return reduce(operator.add, numbers, 0.0)


def _cell_number(cell: str) -> float:
    """A cell's number: "$" dropped, and everything from "(" on ("-80 ( 80 )" is -80, "(5)" is none)."""
    try:
        return parse_number(cell.replace("$", "").strip().split("(")[0].strip())
    except ProgramFailure:
        raise ProgramFailure(ProgramError.BAD_TABLE_CELL) from None


def parse_gold_value(text: str | float) -> Value:
    """A gold answer as a value: "yes", "no" or a finite number. Raises ValueError otherwise."""
    if text in ("yes", "no"):
        return text
    if isinstance(text, bool):
        raise ValueError(f"gold answer {text!r} is neither a number nor yes/no")
    try:
        value = float(text)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"gold answer {text!r} is neither a number nor yes/no") from None
    if not math.isfinite(value):
        raise ValueError(f"gold answer {text!r} is not finite")
    return value


def execution_match(execution: ProgramRun, exe_ans: Value) -> bool:
    """Official execution accuracy of one item: the program is valid and its value equals ``exe_ans``
    exactly. A program without a value matches nothing."""
    return execution.value is not None and execution.value == exe_ans


def is_close(value: Value, gold: Value, tolerance: float) -> bool:
    """Two numbers with |value - gold| <= tolerance * |gold|, or two equal texts."""
    if isinstance(value, str) or isinstance(gold, str):
        return value == gold
    return abs(value - gold) <= tolerance * abs(gold)


def tolerant_match(
    value: Value | None, gold: Value, tolerance: float = TOLERANCE, percent_scale: bool = True
) -> bool:
    """The tolerant score, never to be mixed up with execution accuracy: numbers within a relative
    ``tolerance``, also after multiplying or dividing the gold by 100 (``percent_scale``); yes/no exactly."""
    if value is None or isinstance(gold, str):
        return value == gold
    scales = (1.0, 100.0, 0.01) if percent_scale else (1.0,)
    return any(is_close(value, gold * scale, tolerance) for scale in scales)
