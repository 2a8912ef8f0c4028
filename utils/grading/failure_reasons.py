"""Why an item was answered wrongly: one reason per item, from the programs where there are any.

The reasons are tried in the order below and the first that applies is given, so that each is as specific as
the evidence allows and the counts of an evaluation add up to its wrong items. `Task.reason` of a form of data
set gives them; a form of its own may have others.

For every data set:

 1. ``missing_prediction``  there is no prediction for the item
 2. ``empty_response``      the response holds nothing but white space
 3. ``cut_off``             the response hit the token limit before it gave an answer that could be graded

FinQA and the embedded set, where prediction and gold are programs:

 4. ``invalid_json``        the response is not one JSON object
 5. ``missing_program``     the object has no program
 6. ``invalid_program``     the program cannot be parsed or executed; the detail is the grader's typed reason
 7. ``rounding``            the value agrees with the gold within a relative 1e-3, but is not the gold
 8. ``scale_or_percent``    the value is off by a factor of 100, 1,000, a million or a billion
 9. ``gold_inconsistent``   it is the gold program, which does not give the gold answer: a fault of the data
10. ``operand_order``       same operations on the same operands, arranged differently
11. ``wrong_operand``       same operations, other operands
12. ``wrong_operation``     as many operations on the same operands, but other ones
13. ``missing_step``        the gold's operations with some left out
14. ``extra_step``          the gold's operations with some added
15. ``other_program``       none of these

Steps whose result never reaches the last step do not count on either side, nor does the order of independent
steps: programs are compared by the multisets of their operations and operands.

GSM8K and MATH, where there is only an answer:

 4. ``answer_format``       the flexible rule finds the right answer, the strict one does not (GSM8K)
 5. ``no_answer``           no answer stands where the data set's format puts it
 6. ``unreadable_answer``   comparing the answer with the gold would cost too much
 7. ``rounding``            a number that rounds to the gold (GSM8K: up or down to the whole number; MATH:
                            within a relative 1e-2, where not both are whole)
 8. ``scale_or_percent``    as above
 9. ``wrong_arithmetic``    an equation that the response states is false
10. ``missing_step``        its equations are some of the gold solution's, and the gold has more
11. ``wrong_answer``        none of these

Equations are read as in ``utils.grading.equations``: between numbers, nothing else inside. That one is false
or missing is seen; that it is the cause is not known.
"""

from __future__ import annotations

import math
import re
from collections import Counter

from utils.grading.equations import equation_keys, stated_equations
from utils.grading.program import plain_number

ROUNDING = 1e-3
SCALES = (2, 3, 6, 9)  # powers of ten that a slip in percent, thousands, millions or billions leaves behind
_COMMAS_IN_A_LIST = re.compile(r",(?![0-9]{3}(?![0-9]))")


def answer_failure(value: str, gold: str, whole_number: bool) -> str:
    """Reason (7 or 8 above) for an answer that was found and is not the gold; else "".

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
    """Reason (9 to 11 above) for a wrong answer, from the equations that it and the gold solution state."""
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


def is_close(value: float | str, gold: float | str, tolerance: float) -> bool:
    """Whether two numbers are within a relative tolerance of the gold, or two texts are equal."""
    if isinstance(value, str) or isinstance(gold, str):
        return value == gold
    return abs(value - gold) <= tolerance * abs(gold)


def _single_number(answer: str) -> float | None:
    """A plain number or percentage; None for a list like "4,6"."""
    return None if _COMMAS_IN_A_LIST.search(answer) else plain_number(answer)
