"""The steps of a solution in a form in which two solutions can be compared.

A step is what is done, not what comes out: whether it comes out right is another question.

Programs: an operation with its operands. ``1,000`` is ``1000``, ``5%`` is ``0.05``, ``const_100`` is ``100``;
add and multiply take their operands in either order; a reference stands for the operation whose result it is,
so that a slip in one step does not spoil those that build on it, and independent steps can be reordered.

Text (GSM8K, MATH): the left side of a stated equation between numbers: its operands and operations in any
order, and its value, so that "2 * 8" is "8 x 2", but "5 - 3" is not "3 - 5".
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

from utils.grading.equations import Equation
from utils.grading.program import COMMUTATIVE

Step = tuple[str, str, str]  # operation and its two arguments, as written
SIGNIFICANT_DIGITS = 9  # of values and operands: they are floats


def program_keys(steps: Sequence[Step]) -> list[Hashable]:
    """One comparable key per step of a program, in order."""
    keys = []
    for place, (operation, *arguments) in enumerate(steps):
        operands = [_operand(argument, steps[:place]) for argument in arguments]
        keys.append((operation, *(sorted(operands, key=repr) if operation in COMMUTATIVE else operands)))
    return keys


def equation_keys(equations: Sequence[Equation]) -> list[Hashable]:
    """One comparable key per stated equation, in order."""
    keys = []
    for equation in equations:
        numbers = sorted(rounded(float(t.replace(",", ""))) for t in equation.left if t[-1].isdigit())
        operations = "".join(sorted(token for token in equation.left if token in "+-*/^%"))
        keys.append((tuple(numbers), operations, rounded(equation.value)))
    return keys


def rounded(value: float) -> float:
    """The value to nine significant digits."""
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")


def is_reference(argument: str) -> bool:
    """Whether a program's argument is the result of an earlier step (``#0``)."""
    return argument.startswith("#") and argument[1:].isdecimal()


def canonical_operand(operand: str) -> float | str:
    """The same key for 1,000 and 1000.0, for 5% and 0.05, and for const_100 and 100."""
    if operand == "const_m1":
        return -1.0
    number = plain_number(operand.removeprefix("const_"))
    return operand.strip() if number is None else number


def plain_number(text: str) -> float | None:
    """A plain decimal number, with thousands separators, a currency or a percent sign."""
    text = text.strip().replace(",", "").replace("$", "").replace("\\", "")
    try:
        number = float(text.rstrip("%")) / (100 if text.endswith("%") else 1)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _operand(argument: str, earlier: Sequence[Step]) -> Hashable:
    if not is_reference(argument):
        return canonical_operand(argument)
    place = int(argument[1:])
    return ("result of", earlier[place][0] if place < len(earlier) else "nothing")
