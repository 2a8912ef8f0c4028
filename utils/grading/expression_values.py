"""Whether two scalar expressions have one value: exactly for fractions, by many digits for the rest.

Fractions are compared as fractions. Roots, powers, π, functions and symbols are evaluated with mpmath,
symbols at fixed rational points, with 30 digits and twice as many as the largest, the smallest and the
longest number that occurs on the way: π + 10^{-500} is not π, nor is any decimal. Work is bounded: numbers
above MAX_BITS or MAX_DIGITS and more operations than a WorkBudget has raise Undecided.
"""

import math
import operator
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partialmethod
from typing import Any

from utils.grading.latex_atoms import Node

MAX_BITS = 32_768  # of an exact number: 2004! has 19,200
MAX_DIGITS = 2_500
FUEL = 60_000  # of an operation: one, and one for each 64 bits or 20 digits of its result; of a function more
GUARD = 30
POINTS = 4  # compared of an expression with symbols, out of three times as many
_TRIGONOMETRIC = ("sin", "cos", "tan", "cot", "sec", "csc")
_ARCS = {"arcsin": "asin", "arccos": "acos", "arctan": "atan"}
_OF_FRACTIONS = {"max": max, "min": min}


class NoValue(ValueError):
    """The node is no scalar, or has no finite value (1/0, ∞)."""


class Undecided(ValueError):
    """The comparison would cost too much."""


class WorkBudget:
    """What one verdict may still spend."""

    def __init__(self, fuel: int = FUEL) -> None:
        self.fuel = fuel

    def spend(self, amount: int) -> None:
        self.fuel -= amount
        if self.fuel < 0:
            raise Undecided("too much work")


@dataclass(frozen=True)
class _Pair:
    """Both values at a point, their difference, and how large it may be from rounding alone."""

    x: Any
    y: Any
    difference: Any
    noise: Any
    real: bool  # everything on the way is

    @property
    def equal(self) -> bool:
        return abs(self.difference) <= self.noise


def same_value(a: Node, b: Node, budget: WorkBudget) -> bool:
    """Whether two scalars are equal wherever both are defined and real.

    Raises NoValue where one is no scalar, Undecided where the work is not bounded.
    """
    return all(pair.equal for pair in _pairs(a, b, budget))


def sign_of_difference(a: Node, b: Node, budget: WorkBudget) -> int:
    """-1, 0 or 1 as a < b, a = b or a > b, of two real constants; raises as ``same_value`` does."""
    if symbols(a) or symbols(b):
        raise NoValue("no constant")
    pair = next(_pairs(a, b, budget))
    if not pair.real:
        raise NoValue("not real")
    return 0 if pair.equal else 1 if pair.difference > 0 else -1


def proportional(a: Node, b: Node, budget: WorkBudget, positive: bool = False) -> bool:
    """Whether a is a constant multiple of b, not 0 times (with ``positive``, by a positive constant)."""
    first = None
    for pair in _pairs(a, b, budget):
        zeros = [abs(value) <= pair.noise for value in (pair.x, pair.y)]
        if any(zeros):
            return all(zeros) and first is None and not symbols(a) and not symbols(b)
        quotient = pair.x / pair.y
        first = quotient if first is None else first
        if abs(quotient - first) > abs(first) * 1e-12:
            return False
        if positive and not (_is_real(quotient) and quotient > 0):
            return False
    return True


def symbols(node: Node) -> frozenset[str]:
    """The names of the symbols in a tree; log without a base counts as one, as nobody knows its base."""
    if node[0] == "symbol":
        return frozenset((node[1],))
    found = {"log"} if node[:2] == ("call", "log") and len(node[2]) == 1 else set()
    pending = [part for part in node if isinstance(part, tuple)]
    while pending:
        part = pending.pop()
        if part and isinstance(part[0], str) and part[0] in ("symbol", "call"):
            found |= symbols(part)
        else:
            pending += [inner for inner in part if isinstance(inner, tuple)]
    return frozenset(found)


def _pairs(a: Node, b: Node, budget: WorkBudget) -> Iterator[_Pair]:
    """Both values at several points: where all is real, or if it is so nowhere, where they exist."""
    names = sorted(symbols(a) | symbols(b))
    needed = POINTS if names else 1
    for real in (True, False):
        found = 0
        for number in range(3 * needed if names else 1):
            point = {name: _coordinate(name, number, place) for place, name in enumerate(names)}
            try:
                pair = _pair(a, b, point, budget)
            except NoValue:
                if not names:
                    raise
                continue
            if pair.real or not real:
                yield pair
                found += 1
                if found == needed:
                    return
        if found:
            return
    raise NoValue("no value at any point")


def _pair(a: Node, b: Node, point: dict[str, Fraction], budget: WorkBudget) -> _Pair:
    """Evaluated with few digits first: most answers that differ do so at once."""
    digits = GUARD
    while True:
        evaluation = _Evaluation(point, digits, budget)
        context = evaluation.context
        with context.workdps(digits):
            x, y = evaluation.value(a), evaluation.value(b)
            if isinstance(x, Fraction) and isinstance(y, Fraction):
                return _Pair(x, y, x - y, 0, True)
            x, y = evaluation.number(x), evaluation.number(y)
            noise = context.mpf(10) ** (evaluation.high + 10 - digits)
            pair = _Pair(x, y, x - y, noise, evaluation.real)
        if not pair.equal or evaluation.digits_needed() <= digits:
            return pair
        digits = max(2 * digits, evaluation.digits_needed())
        if digits > MAX_DIGITS:
            raise Undecided("too many digits")


def _coordinate(name: str, number: int, place: int = 0) -> Fraction:
    """A symbol's value at a point, between 0.4 and 2.4: positive there, or of a sign that alternates with the
    symbol's place, or negative, or of either sign. So |x| is not x, nor |xy| xy."""
    value = Fraction(zlib.crc32(f"{name} {number}".encode()) % 9973 + 2000, 4999)
    odds = (0, place % 2, 1, zlib.crc32(f"{number} {name}".encode()) % 2)
    return -value if odds[number % 4] else value


def _is_real(value: Any) -> bool:
    return isinstance(value, Fraction) or not hasattr(value, "_mpc_")


_local = threading.local()


def _mpmath() -> Any:
    """This thread's arithmetic; mpmath's own has one precision for all threads."""
    if not hasattr(_local, "context"):
        import mpmath

        _local.context = mpmath.MPContext()
    return _local.context


class _Evaluation:
    """Values at one point; ``high`` and ``low`` are the digits that occurred before and behind the point, of
    fractions those of numerator and denominator."""

    def __init__(self, point: dict[str, Fraction], digits: int, budget: WorkBudget) -> None:
        self.point = point
        self.digits = digits
        self.budget = budget
        self.context = _mpmath()
        self.high = self.low = 0
        self.real = True
        self.angle = False  # in the argument of sin: degrees are to be converted

    def digits_needed(self) -> int:
        """Twice what occurred: a fraction of n digits can agree with an irrational number to 2n."""
        return GUARD + 2 * (self.high + self.low)

    def value(self, node: Node) -> Any:
        """A Fraction where the value is one and exactly known, else a number of mpmath's, in whose context
        the digits must have been set."""
        method = getattr(self, f"_{node[0]}", None)
        if method is None:
            raise NoValue(f"no scalar: {node[0]}")
        try:
            value = method(*node[1:])
        except (ZeroDivisionError, OverflowError, TypeError, ValueError) as error:
            if isinstance(error, NoValue | Undecided):
                raise
            raise NoValue(str(error)) from None
        return self.recorded(value)

    def recorded(self, value: Any) -> Any:
        if isinstance(value, Fraction):
            sizes = value.numerator.bit_length(), value.denominator.bit_length()
            self.budget.spend(1 + sum(sizes) // 64)
        else:
            value = self._without_noise(value)
            self.real = self.real and _is_real(value)
            if not self.context.isfinite(value):
                raise NoValue("not finite")
            self.budget.spend(1 + self.digits // 20)
            size = int(self.context.mag(value)) if value else 0
            sizes = size, -size
        if max(sizes) > 2 * MAX_BITS:
            raise Undecided("too large")
        self.high, self.low = (
            max(most, math.ceil(size * math.log10(2)))
            for most, size in zip((self.high, self.low), sizes, strict=True)
        )
        return value

    def _without_noise(self, value: Any) -> Any:
        """Without an imaginary part that is nothing but rounding."""
        if hasattr(value, "_mpc_") and abs(value.imag) <= abs(value.real) * self.context.mpf(10) ** (
            8 - self.digits
        ):
            return value.real
        return value

    def charge(self, times: int = 1) -> None:
        """Pay for a function of mpmath's, which takes time quadratic in the digits."""
        self.budget.spend(times * (self.digits // 20) ** 2 // 4)

    def number(self, value: Any) -> Any:
        if isinstance(value, Fraction):
            return self.context.mpf(value.numerator) / value.denominator
        return value

    # ------------------------------------------------------------------------------ kinds of nodes

    def _number(self, value: Fraction) -> Fraction:
        return value

    def _based(self, digits: str, base: int) -> Fraction:
        whole, _, part = digits.partition(".")
        return Fraction(int(whole + part, base), base ** len(part))

    def _constant(self, name: str) -> Any:
        if name == "infinity":
            raise NoValue("infinite")
        return {"pi": +self.context.pi, "e": +self.context.e, "i": self.context.mpc(0, 1)}[name]

    def _symbol(self, name: str) -> Any:
        return self.number(self.point[name])

    def _arithmetic(self, operation: Callable[[Any, Any], Any], a: Node, b: Node) -> Any:
        x, y = self.value(a), self.value(b)
        if not (isinstance(x, Fraction) and isinstance(y, Fraction)):
            x, y = self.number(x), self.number(y)
        return operation(x, y)

    _add = partialmethod(_arithmetic, operator.add)
    _multiply = partialmethod(_arithmetic, operator.mul)
    _divide = partialmethod(_arithmetic, operator.truediv)

    def _negate(self, a: Node) -> Any:
        return -self.value(a)

    def _degrees(self, a: Node) -> Any:
        value = self.value(a)
        return self.number(value) * self.context.pi / 180 if self.angle else value

    def _quantity(self, a: Node, unit: tuple) -> Any:
        if unit[0] != (("degrees", 1),):
            raise NoValue("a unit in a term")
        return self._degrees(a)

    def _factorial(self, a: Node) -> Any:
        value = self.value(a)
        if isinstance(value, Fraction) and value.denominator == 1:
            if value < 0:
                raise NoValue("factorial of a negative number")
            if value > 3000:
                raise Undecided("too large")
            return Fraction(math.factorial(int(value)))
        self.moderate(value)
        return self.context.gamma(self.number(value) + 1)

    def _power(self, a: Node, b: Node) -> Any:
        x, y = self.value(a), self.value(b)
        if x == 0:
            if not (_is_real(y) and y > 0):
                raise NoValue("0 to the power 0 or less")
            return Fraction(0)
        if isinstance(x, Fraction) and isinstance(y, Fraction) and y.denominator == 1:
            bits = max(x.numerator.bit_length(), x.denominator.bit_length())
            if abs(x) != 1 and bits * abs(y) <= MAX_BITS:
                return x ** int(y)
            if abs(x) == 1:
                return x if y % 2 else Fraction(1)
        x, y = self.number(x), self.number(y)
        if self.context.mag(y) > 40 or abs(y) * (abs(self.context.mag(x)) + 1) > 2 * MAX_BITS:
            raise Undecided("too large")
        self.charge()
        return self.context.power(x, y)

    def _root(self, degree: Node, a: Node) -> Any:
        n, x = self.value(degree), self.value(a)
        if not isinstance(n, Fraction) or n.denominator != 1 or not 2 <= n <= 1000:
            return self._power(a, ("divide", ("number", Fraction(1)), degree))
        if isinstance(x, Fraction) and x >= 0 and n == 2:
            above, below = math.isqrt(x.numerator), math.isqrt(x.denominator)
            if above**2 == x.numerator and below**2 == x.denominator:
                return Fraction(above, below)
        x = self.number(x)
        self.charge()
        if _is_real(x) and x < 0 and n % 2:
            return -self.context.root(-x, int(n))
        return self.context.root(x, int(n))

    def _call(self, name: str, arguments: tuple[Node, ...]) -> Any:
        if not arguments:  # of the empty set: "\\ln\\emptyset"
            raise NoValue("no argument")
        before, self.angle = self.angle, name in _TRIGONOMETRIC
        values = [self.value(argument) for argument in arguments]
        self.angle = before
        if name in _OF_FRACTIONS:
            numbers = values if all(isinstance(v, Fraction) for v in values) else [*map(self.number, values)]
            return _OF_FRACTIONS[name](numbers)
        if name == "abs":
            return abs(values[0])
        if name in ("floor", "ceil"):
            return self.rounded(values[0], name)
        if name in ("gcd", "lcm"):
            return Fraction(getattr(math, name)(*(self.whole(value) for value in values)))
        if name == "binom":
            return self.binomial(*values)
        numbers = [self.number(value) for value in values]
        self.charge()
        if name in ("f", "g"):  # unknown functions: some value that depends on the arguments alone
            text = " ".join(self.context.nstr(number, 12) for number in numbers)
            return self.number(_coordinate(f"{name}({text})", 0))
        if name in ("ln", "log", "lg"):
            base = {"ln": 1, "lg": self.context.ln(10)}.get(name) or (
                self.context.ln(numbers[1]) if len(numbers) > 1 else 1 / self._symbol("log")
            )
            return self.context.ln(numbers[0]) / base
        if self.context.mag(numbers[0]) > 60 or (
            name in ("exp", "sinh", "cosh") and abs(numbers[0]) > MAX_BITS
        ):
            raise Undecided("too large")
        return getattr(self.context, _ARCS.get(name, name))(numbers[0])

    # ------------------------------------------------------------------------------ whole numbers

    def whole(self, value: Any) -> int:
        if not isinstance(value, Fraction) or value.denominator != 1:
            raise NoValue("not a whole number")
        return int(value)

    def moderate(self, value: Any) -> None:
        """Bound what the gamma function is asked for: it takes seconds for thousands of digits."""
        if self.digits > 300 or abs(value) > 10_000:
            raise Undecided("too large")
        self.charge(times=20)

    def rounded(self, value: Any, name: str) -> Any:
        if not isinstance(value, Fraction):
            if not _is_real(value):
                raise NoValue("not real")
            nearest = self.context.nint(value)
            if abs(value - nearest) < 1e-10:
                return nearest
            return getattr(self.context, name)(value)
        return Fraction(getattr(math, name)(value))

    def binomial(self, n: Any, k: Any) -> Any:
        if all(isinstance(value, Fraction) and value.denominator == 1 for value in (n, k)) and n >= 0 <= k:
            if min(k, abs(n - k)) * int(n).bit_length() > MAX_BITS:
                raise Undecided("too large")
            return Fraction(math.comb(int(n), int(k)))
        self.moderate(n)
        self.moderate(k)
        return self.context.binomial(self.number(n), self.number(k))
