"""Why an item was answered wrongly: pieces that the tasks' reasons are made of.

`Task.reason` gives one reason per item, the first that applies in the order of docs/evaluation.md, so that
each is as specific as the evidence allows and the counts of an evaluation add up to its wrong items.
"""

from __future__ import annotations

import math
import re
from collections import Counter

from utils.grading.equations import equation_keys, stated_equations
from utils.grading.execute import is_close
from utils.grading.program import plain_number

ROUNDING = 1e-3
SCALES = (2, 3, 6, 9)  # powers of ten that a slip in percent, thousands, millions or billions leaves behind
_COMMAS_IN_A_LIST = re.compile(r",(?![0-9]{3}(?![0-9]))")


def answer_failure(value: str, gold: str, whole_number: bool) -> str:
    """Reason (rounding, scale) for an answer that was found and is not the gold; else "".

    Args:
        value, gold: the two answers as text; only plain numbers are examined for rounding and scale.
        whole_number: whether golds are whole numbers (GSM8K), to which an answer may have to be rounded.
    """
    number, gold_number = _single_number(value), _single_number(gold)
    if number is None or gold_number is None:
        return ""
    if whole_number:
        rounds = number != gold_number and gold_number in (math.floor(number), math.ceil(number))
    else:
        decimals = not (number.is_integer() and gold_number.is_integer())
        rounds = decimals and is_close(number, gold_number, 1e-2)
    if rounds:
        return "rounding"
    return "scale_or_percent" if is_scale_slip(number, gold_number) else ""


def working_failure(response: str, gold: str) -> str:
    """Reason for a wrong answer, from the equations that it and the gold solution state."""
    stated = stated_equations(response)
    if not all(equation.holds for equation in stated):
        return "wrong_arithmetic"
    own, due = (Counter(equation_keys(equations)) for equations in (stated, stated_equations(gold)))
    return "missing_step" if own and own < due else "wrong_answer"


def is_scale_slip(value: float | str, gold: float | str) -> bool:
    """Whether two numbers differ by a factor of 10^±2, 10^±3, 10^±6 or 10^±9, within a relative 1e-3."""
    if isinstance(value, str) or isinstance(gold, str) or value == 0 or gold == 0:
        return False
    return any(is_close(value, gold * 10.0**power, ROUNDING) for s in SCALES for power in (s, -s))


def _single_number(answer: str) -> float | None:
    """A plain number or percentage; None for a list like "4,6"."""
    return None if _COMMAS_IN_A_LIST.search(answer) else plain_number(answer)
