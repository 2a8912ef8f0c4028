"""What the symbolic worker computes. Imported in the child only: SymPy is heavy."""

from functools import lru_cache

import sympy

GOLD_FAILED = "gold"


def programs_equal(gold: list, predicted: list) -> bool | str:
    """Whether two symbolised programs have the same simplified last step.

    A program is a list of steps [op, a, b]; an argument is a symbol's name or the number of an earlier
    step; a step that is a symbol itself is [None, name, ""]. Returns GOLD_FAILED if the gold program has
    no symbolic form (arithmetic on a comparison).
    """
    try:
        gold_form = _simplified(_frozen(gold))
    except Exception:
        return GOLD_FAILED
    try:
        return bool(gold_form == _simplified(_frozen(predicted)))
    except (TypeError, ValueError, AttributeError, RecursionError):
        return False


def _frozen(steps: list) -> tuple:
    return tuple(tuple(step) for step in steps)


@lru_cache(maxsize=4096)
def _simplified(steps: tuple) -> sympy.Basic:
    values: dict[int, sympy.Basic] = {}

    def value(argument: str | int) -> sympy.Basic:
        return sympy.Symbol(argument) if isinstance(argument, str) else step_value(argument)

    def step_value(index: int) -> sympy.Basic:
        if index not in values:
            op, a, b = steps[index]
            values[index] = sympy.Symbol(a) if op is None else _OPERATIONS[op](value(a), value(b))
        return values[index]

    return sympy.simplify(step_value(len(steps) - 1))


_OPERATIONS = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "divide": lambda a, b: a / b,
    "exp": lambda a, b: a**b,
    "greater": lambda a, b: a > b,
}

TASKS = {"programs_equal": programs_equal}


def warm_up() -> None:
    """Pay for lazy imports and compiled patterns before the first timed request."""
    programs_equal([["add", "a0", "a1"]], [["add", "a1", "a0"]])
