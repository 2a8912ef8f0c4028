"""FinQA programs as text: tokens, steps, and what two programs have in common.

A program is ``op(a, b), op(#0, c), ...``; ``#n`` is the result of step n, counted from 0. Its wire form
is a list of tokens, four per step (``"add("``, ``"1"``, ``"2"``, ``")"``), closed by ``"EOF"``. Behaviour
follows the official evaluator (Chen et al. 2021, arXiv 2109.00122, released code); its traps are listed
in ``docs/grading.md``. Programs are written by models and treated as hostile: sizes are bounded, nothing
is evaluated as code, and every failure is a ``ProgramError``.
"""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from enum import Enum

NUMBER_OPERATIONS = ("add", "subtract", "multiply", "divide", "exp", "greater")
TABLE_OPERATIONS = ("table_max", "table_min", "table_sum", "table_average")
OPERATIONS = NUMBER_OPERATIONS + TABLE_OPERATIONS
COMMUTATIVE = ("add", "multiply")
END = "EOF"

MAX_STEPS = 32  # the longest gold program of FinQA has 5 steps
MAX_TOKEN_CHARS = 256  # the longest table row name of FinQA has 184 characters


class ProgramError(Enum):
    """Why a program has no value."""

    EMPTY = "empty"  # no complete step
    TOO_LONG = "too_long"  # more than MAX_STEPS steps, or a token above MAX_TOKEN_CHARS
    BAD_STRUCTURE = "bad_structure"  # tokens are not op( a b ) op( a b ) ...
    UNKNOWN_OPERATION = "unknown_operation"
    BAD_NUMBER = "bad_number"
    BAD_REFERENCE = "bad_reference"  # to the step itself, a later step, or no step
    BAD_TABLE_ROW = "bad_table_row"  # no such row name, or a reference in its place
    BAD_TABLE_CELL = "bad_table_cell"  # a cell of the row is not a number, or the row has no cells
    TYPE = "type"  # arithmetic on yes/no
    DIVISION_BY_ZERO = "division_by_zero"
    OVERFLOW = "overflow"  # beyond float64, on the way or in the final value
    NOT_REAL = "not_real"  # a complex power or NaN in the final value, or a complex power compared


class ProgramFailure(Exception):
    """Raised inside the grading room; ``error`` is the ``ProgramError``."""

    def __init__(self, error: ProgramError) -> None:
        super().__init__(error.value)
        self.error = error


@dataclass(frozen=True)
class ProgramStep:
    """One step. ``text`` is the step as the official evaluator spells it (tokens joined by "|"): by this
    exact string it identifies table steps when programs are compared."""

    op: str
    a: str
    b: str
    text: str


def tokenize_program(text: str) -> list[str]:
    """Split a program into tokens and append "EOF", exactly as the official evaluator does.

    It splits on ", " (comma and blank), then after "(" and around ")". So ``add(1,2)`` is a single
    malformed argument, blanks are kept inside tokens, and a row name holding ", " breaks in two.
    """
    tokens = []
    for part in text.split(", "):
        token = ""
        for char in part:
            if char == ")" and token:
                tokens.append(token)
                token = ""
            token += char
            if char in "()":
                tokens.append(token)
                token = ""
        if token:
            tokens.append(token)
    return [*tokens, END]


def parse_steps(tokens: list[str], check_structure: bool = True) -> list[ProgramStep]:
    """Read tokens into steps; raises ProgramFailure.

    The last token is dropped unseen, as the official evaluator does, so a list without "EOF" loses its
    last step (whose ")" is gone). Tokens are then re-joined by "|" and split at ")", which is why an
    incomplete step at the end is ignored. ``check_structure`` is off for golds, as in the official code.
    """
    if len(tokens) > 4 * MAX_STEPS + 1:
        raise ProgramFailure(ProgramError.TOO_LONG)
    for token in tokens:
        if not isinstance(token, str):
            raise ProgramFailure(ProgramError.BAD_STRUCTURE)
        if len(token) > MAX_TOKEN_CHARS:
            raise ProgramFailure(ProgramError.TOO_LONG)
    body = tokens[:-1]
    if check_structure:
        for position, token in enumerate(body):
            if position % 4 == 0 and token.strip("(") not in OPERATIONS:
                raise ProgramFailure(_operation_error(token))
            if position % 4 == 3 and token != ")":
                raise ProgramFailure(ProgramError.BAD_STRUCTURE)
    return [_parse_step(piece.strip()) for piece in "|".join(body).split(")")[:-1]]


def _operation_error(token: str) -> ProgramError:
    return ProgramError.UNKNOWN_OPERATION if token.endswith("(") else ProgramError.BAD_STRUCTURE


def _parse_step(text: str) -> ProgramStep:
    parts = text.split("(")
    if len(parts) != 2:
        raise ProgramFailure(ProgramError.BAD_STRUCTURE)
    op = parts[0].strip("|").strip()
    arguments = parts[1].strip("|").strip().split("|")
    if len(arguments) < 2:
        raise ProgramFailure(ProgramError.BAD_STRUCTURE)
    if op not in OPERATIONS:
        raise ProgramFailure(ProgramError.UNKNOWN_OPERATION)
    return ProgramStep(op, arguments[0].strip(), arguments[1].strip(), text)


def program_steps(tokens: list[str]) -> list[tuple[str, str, str]]:
    """The steps of a program as (operation, argument, argument); empty where it cannot be read.

    Their number is FinQA's level of difficulty.
    """
    try:
        return [(step.op, step.a, step.b) for step in parse_steps(tokens)]
    except ProgramFailure:
        return []


def _canonical(step: tuple[str, str, str]) -> tuple[str, str, str]:
    op, a, b = step
    return (op, b, a) if op in COMMUTATIVE and b < a else step


def step_overlap(predicted: Sequence[tuple[str, str, str]], gold: Sequence[tuple[str, str, str]]) -> float:
    """Share of steps in common, in [0, 1]: the multiset intersection of (operation, arguments) over the
    longer program's length, so that listing many steps in the hope of hitting one does not pay.

    Arguments are compared as written; the order matters except for add and multiply.
    """
    if not predicted or not gold:
        return 0.0
    shared = Counter(map(_canonical, predicted)) & Counter(map(_canonical, gold))
    return shared.total() / max(len(predicted), len(gold))


def program_keys(steps: Sequence[tuple[str, str, str]]) -> list[Hashable]:
    """One key per step, by which what two programs do is compared, whether or not it comes out right.

    ``1,000`` is ``1000``, ``5%`` is ``0.05``, ``const_100`` is ``100``; add and multiply take their operands
    in either order; a reference stands for the operation whose result it is, so that a slip in one step does
    not spoil those that build on it, and independent steps can be reordered.
    """
    keys: list[Hashable] = []
    for place, (operation, *arguments) in enumerate(steps):
        operands = [_operand_key(argument, steps[:place]) for argument in arguments]
        keys.append((operation, *(sorted(operands, key=repr) if operation in COMMUTATIVE else operands)))
    return keys


def _operand_key(argument: str, earlier: Sequence[tuple[str, str, str]]) -> Hashable:
    if not is_reference(argument):
        return canonical_operand(argument)
    place = int(argument[1:])
    return ("result of", earlier[place][0] if place < len(earlier) else "nothing")


def is_reference(argument: str) -> bool:
    """Whether an argument is the result of an earlier step (``#0``)."""
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
