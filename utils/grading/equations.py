"""The equations between numbers that a text states ("48 / 2 = 24", "2 + 3 * 4 = 14"), computed again.

A right side with decimals may be rounded or cut to them. Anything with unknowns, functions or units inside is
not an equation here and does not count. True equations do not make an answer right: they may be beside the
point, or trivial ("1 + 1 = 2"), so pay little for them, and look at the reward audit first.

Completions are hostile: at most `MAX_CHARS` characters and `MAX_EQUATIONS` equations of `MAX_SIDE` characters
a side are read, by a parser without eval, recursion or big integers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

MAX_CHARS = 20_000
MAX_EQUATIONS = 64
MAX_SIDE = 120
SIGNIFICANT_DIGITS = 9  # of values and operands that are compared: they are floats


def true_equations(text: str) -> float:
    """Share of the stated equations that hold; 0 where none is stated: what is not shown earns nothing."""
    verdicts = equations(text)
    return sum(verdicts) / len(verdicts) if verdicts else 0.0


_SPELLINGS = (
    (r"\\(?:times|cdot|ast)(?![a-zA-Z])|[×∙·⋅]", "*"),
    (r"\\div(?![a-zA-Z])|÷", "/"),
    (r"(?<=[0-9])[ \t]*\\[dt]?frac", "~"),  # a mixed number, or a product: not read
    (r"\\[dt]?frac\{([0-9.]{1,20})\}\{([0-9.]{1,20})\}", r"((\1)/(\2))"),
    (r"\^\{([0-9.]{1,20})\}", r"^\1"),
    (r"\\(?:left|right|[,;! ])|\\?\$|[€£]", ""),
    (r"\\%", "%"),
    (r"\*\*", "^"),
    (r"[−–]", "-"),
    (r"(?<=[-+*/^=])[ \t]*\n[ \t]*", " "),  # a calculation that goes on in the next line
    # The letter x between two numbers; in "3x + 2" it is an unknown.
    (r"(?<=[0-9)%])[ \t]*[xX][ \t]*(?=[0-9(.])", "*"),
)
_PLAIN = tuple((re.compile(pattern), plain) for pattern, plain in _SPELLINGS)
_TOKEN = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+|[-+*/^()%]")
_ONE_NUMBER = re.compile(r"[0-9]+/[0-9]|[0-9]{3}(?![0-9])")  # the rest of "2 1/2" or "10 000"
_EQUALS = re.compile(r"(?<![<>=!:~≠≈+*/^-])=(?!=)")
_OPENERS = " \t([{;<>=\"'"  # what may stand right before an equation
# What may not follow a right side: an unknown, a function, a ratio, a remainder, a further factor.
_GOES_ON = re.compile(
    r"[\w^{!~]|:[0-9]|[ \t]+\([-0-9.(]|[ \t]+[rR][ \t]*[0-9]|[ \t]*\\(?!text|mbox|q?quad)[a-zA-Z]"
)
# What takes the first operand of a left side for itself: operations in words ("half of 20 + 2"), LaTeX's
# commands ("\frac 12 * 18"), and before a bracket, a function.
_CLAIMS = re.compile(r"(?:(?:^|[^a-z])(?:of|by|over|plus|minus|times|x)|\\[a-z]+)[ \t]*$", re.IGNORECASE)
_FUNCTION = re.compile(r"(?:^|[^a-z])[a-z][ \t]*$", re.IGNORECASE)


@dataclass(frozen=True)
class Equation:
    """One stated equation between numbers: the tokens of its two sides, and whether it is true."""

    left: tuple[str, ...]
    right: tuple[str, ...]
    holds: bool

    @property
    def value(self) -> float:
        """The left side computed again."""
        return _known(_value(list(self.left)))

    @property
    def stated(self) -> float:
        """The right side's value."""
        return _known(_value(list(self.right)))


def equations(text: str) -> list[bool]:
    """Whether each equation between numbers that the text states is true, in order."""
    return [equation.holds for equation in stated_equations(text)]


def stated_equations(text: str) -> list[Equation]:
    """The equations between numbers that the text states, in order."""
    found: list[Equation] = []
    for line in plain_arithmetic(text[:MAX_CHARS]).splitlines():
        end = 0
        for match in _EQUALS.finditer(line):
            # Twice what is read, so that it shows whether a side goes on and which word stands before it.
            left = _left_side(line[max(end, match.start() - 2 * MAX_SIDE) : match.start()])
            end = match.end()
            right = _right_side(line[end : end + 2 * MAX_SIDE])
            if left is not None and right is not None:
                found.append(Equation(tuple(left), tuple(right), _equal(_known(_value(left)), right)))
            if len(found) == MAX_EQUATIONS:
                return found
    return found


def equation_keys(equations: Sequence[Equation]) -> list[Hashable]:
    """One key per equation, by which steps of two solutions are compared: its left side's operands and
    operations in any order, and its value, so that "2 * 8" is "8 x 2", but "5 - 3" is not "3 - 5"."""
    keys: list[Hashable] = []
    for equation in equations:
        numbers = sorted(_rounded(float(t.replace(",", ""))) for t in equation.left if t[-1].isdigit())
        operations = "".join(sorted(token for token in equation.left if token in "+-*/^%"))
        keys.append((tuple(numbers), operations, _rounded(equation.value)))
    return keys


def _known(value: float | None) -> float:
    """The value of a side that was read as one: it has one."""
    assert value is not None
    return value


def _rounded(value: float) -> float:
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")


def plain_arithmetic(text: str) -> str:
    """The text with its calculations in plain signs: no LaTeX, no currency, * for every multiplication."""
    for pattern, plain in _PLAIN:
        text = pattern.sub(plain, text)
    return text


def _left_side(text: str) -> list[str] | None:
    """The tokens of the calculation that ends `text`, None where there is none or it may not be all of it."""
    tokens: list[str] = []
    start = end = len(text)
    for match in _TOKEN.finditer(text):
        gap = text[end : match.start()] if tokens else "."
        if gap.strip():
            tokens, start = [], match.start()
        if tokens and _side_by_side(tokens[-1], match[0]):
            if match[0] == "(":
                tokens.append("*")
            elif not gap or _ONE_NUMBER.match(text[match.start() :]):
                return None
            else:
                tokens, start = [], match.start()
        tokens.append(match[0])
        end = match.end()
    if not tokens or text[end:].strip() or len(text) - start > MAX_SIDE:
        return None
    before = text[:start]
    opened = []
    for place, token in enumerate(tokens):
        if token == "(":
            opened.append(place)
        elif token == ")":
            if not opened:
                return None
            opened.pop()
    if opened:  # "(so 2 * (3 + 4 = 7)": what stands after the innermost bracket that stays open
        tokens, before = tokens[opened[-1] + 1 :], "("
    bare = before.rstrip()
    if before and before[-1] not in _OPENERS or _CLAIMS.search(before):
        return None
    if tokens[:1] == ["("] and _FUNCTION.search(before):
        return None  # "f (2 + 3)"
    if tokens[:1] == ["-"] and bare and bare[-1] not in _OPENERS + ":,":
        return None  # something is subtracted from: "x - 3 + 1"
    calculates = any(token in "+-*/^" for token in tokens[1:])
    return tokens if calculates and _value(tokens) is not None else None


def _side_by_side(first: str, second: str) -> bool:
    """Two operands follow each other without an operation."""
    return second[0] in "0123456789.(" and first[-1] in "0123456789)%"


def _right_side(text: str) -> list[str] | None:
    """The tokens of the calculation or number that `text` begins with, None as above."""
    tokens: list[str] = []
    end = 0
    for match in _TOKEN.finditer(text):
        gap = text[end : match.start()]
        if gap.strip():
            break
        if tokens and _side_by_side(tokens[-1], match[0]):
            if not gap and match[0] == "(":
                tokens.append("*")
            elif not gap or _ONE_NUMBER.match(text[match.start() :]):
                return None
            else:
                break
        if match[0] == ")" and tokens.count("(") <= tokens.count(")"):
            break
        tokens.append(match[0])
        end = match.end()
    if end > MAX_SIDE or _GOES_ON.match(text[end:]):
        return None
    return tokens if _value(tokens) is not None else None


_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2, "negate": 3, "^": 4}


def _value(tokens: list[str]) -> float | None:
    """The value of a calculation, by operator-precedence parsing.

    None for anything else, and where there is no value in float64 (a division by zero, an overflow, a root of
    a negative number).
    """
    values: list[float] = []
    waiting: list[str] = []
    wants_operand = True
    for token in tokens:
        if wants_operand:
            if token in ("(", "-"):
                waiting.append("(" if token == "(" else "negate")
            elif token[-1].isdigit():
                values.append(float(token.replace(",", "")))
                wants_operand = False
            else:
                return None
        elif token == "%":
            values[-1] /= 100
        elif token == ")":
            while waiting and waiting[-1] != "(":
                _apply(waiting.pop(), values)
            if not waiting:
                return None
            waiting.pop()
        elif token in _PRECEDENCE:
            binding = _PRECEDENCE[token] + (token == "^")  # powers are taken from the right
            while waiting and waiting[-1] != "(" and _PRECEDENCE[waiting[-1]] >= binding:
                _apply(waiting.pop(), values)
            waiting.append(token)
            wants_operand = True
        else:
            return None
    if wants_operand or "(" in waiting:
        return None
    while waiting:
        _apply(waiting.pop(), values)
    return values[0] if math.isfinite(values[0]) else None


def _apply(operation: str, values: list[float]) -> None:
    """Replace the operands at the end of `values` by the result, NaN where there is none."""
    b = values.pop()
    if operation == "negate":
        values.append(-b)
        return
    a = values.pop()
    try:
        if operation == "^":
            result = a**b
        else:
            result = {"+": a + b, "-": a - b, "*": a * b}[operation] if operation != "/" else a / b
    except (ZeroDivisionError, OverflowError):
        result = math.nan
    values.append(result if isinstance(result, float) and math.isfinite(result) else math.nan)


def _equal(left: float, right: list[str]) -> bool:
    """The right side is the left one's value: to a billionth of it (values are floats), or where it is a
    number with decimals, rounded or cut to them. "25%" is 0.25, or 25 where the left side was scaled already.
    """
    value = _known(_value(right))
    number = [token for token in right if token not in ("-", "%")]
    percent = right[-1] == "%"
    unit = 0.0
    if len(number) == 1 and "." in number[0]:
        unit = 10.0 ** -len(number[0].split(".")[1])
    readings = [(value, unit / 100), (value * 100, unit)] if percent else [(value, unit)]
    return any(abs(left - stated) <= max(1e-9 * abs(stated), 0.999999 * step) for stated, step in readings)
