"""FinQA program accuracy: two programs are the same if their last steps are the same formula.

Every distinct argument string of the gold program becomes a symbol, and so does every table step (by its
exact text). A prediction using anything else fails, even in a step it never uses. The formulas of the
last steps are then compared as SymPy's ``simplify`` leaves them. Constants have no value here: const_100
is not 100. See docs/grading.md for what this lets through and what not.
"""

import random

from utils.grading import worker
from utils.grading.program import TABLE_OPERATIONS, ProgramError, ProgramFailure, ProgramStep, parse_steps

PRIME = (1 << 61) - 1
TRIALS = 3  # random points at which formulas are compared before SymPy is asked

SymbolicStep = tuple[str | None, str | int, str | int]


def program_match(predicted: list[str], gold: list[str], timeout: float = worker.TIMEOUT_S) -> bool:
    """Official program accuracy of one item, for token lists closed by "EOF".

    Where SymPy needs more than ``timeout`` seconds the programs count as different. Unlike the official
    evaluator this does not assert that the two programs also execute to the same value (it aborts the
    whole evaluation); compare executions separately. Raises ValueError if the gold cannot be read.
    """
    try:
        gold_steps = parse_steps(gold, check_structure=False)
        if not gold_steps:
            raise ProgramFailure(ProgramError.EMPTY)
        symbols = _symbols(gold_steps)
        gold_form = [_symbolic(step, index, symbols) for index, step in enumerate(gold_steps)]
    except (ProgramFailure, _Unmatched):
        raise ValueError(f"gold program cannot be read: {' '.join(map(str, gold))[:200]}") from None
    try:
        steps = parse_steps(predicted)
        form = [_symbolic(step, index, symbols) for index, step in enumerate(steps)]
    except (ProgramFailure, _Unmatched):
        return False
    if not form:
        return False
    if form == gold_form:
        return True
    if _provably_different(form, gold_form):
        return False
    try:
        verdict = worker.call("programs_equal", timeout, gold=gold_form, predicted=form)
    except (worker.WorkerTimeout, worker.WorkerFailure):
        return False
    if verdict == "gold":
        raise ValueError(f"gold program has no symbolic form: {' '.join(map(str, gold))[:200]}")
    return bool(verdict)


class _Unmatched(Exception):
    """A prediction uses what the gold program does not, or a step that is not there."""


def _symbols(steps: list[ProgramStep]) -> dict[str, str]:
    symbols: dict[str, str] = {}
    for step in steps:
        keys = [step.text] if step.op in TABLE_OPERATIONS else [step.a, step.b]
        for key in keys:
            if step.op in TABLE_OPERATIONS or "#" not in key:
                symbols.setdefault(key, f"a{len(symbols)}")
    return symbols


def _symbolic(step: ProgramStep, index: int, symbols: dict[str, str]) -> SymbolicStep:
    if step.op in TABLE_OPERATIONS:
        return (None, _symbol(step.text, symbols), "")
    return step.op, _argument(step.a, index, symbols), _argument(step.b, index, symbols)


def _argument(text: str, index: int, symbols: dict[str, str]) -> str | int:
    if "#" not in text:
        return _symbol(text, symbols)
    try:
        reference = int(text.replace("#", ""))
    except ValueError:
        raise _Unmatched from None
    if not 0 <= reference < index:
        raise _Unmatched
    return reference


def _symbol(key: str, symbols: dict[str, str]) -> str:
    if key not in symbols:
        raise _Unmatched
    return symbols[key]


def _provably_different(a: list[SymbolicStep], b: list[SymbolicStep]) -> bool:
    """True only if the formulas differ at some random point of the integers modulo a prime, where equal
    rational functions agree. It spares SymPy most wrong programs; exp and greater are left to SymPy."""
    names = sorted({x for steps in (a, b) for step in steps for x in step[1:] if isinstance(x, str)})
    rng = random.Random(0)
    for _ in range(TRIALS):
        point = {name: rng.randrange(1, PRIME) for name in names}
        left, right = _evaluate(a, point), _evaluate(b, point)
        if left is not None and right is not None and left != right:
            return True
    return False


def _evaluate(steps: list[SymbolicStep], point: dict[str, int]) -> int | None:
    values: list[int | None] = []
    for op, a, b in steps:
        if op is None:
            values.append(point[str(a)])
        else:
            values.append(_modular(op, *(point[x] if isinstance(x, str) else values[x] for x in (a, b))))
    return values[-1]


def _modular(op: str, x: int | None, y: int | None) -> int | None:
    if x is None or y is None or op in ("exp", "greater"):
        return None
    if op == "divide":
        return None if y == 0 else x * pow(y, -1, PRIME) % PRIME
    return {"add": x + y, "subtract": x - y, "multiply": x * y}[op] % PRIME
