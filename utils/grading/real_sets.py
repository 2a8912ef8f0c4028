"""Sets of real numbers as intervals in order: what an answer stands for, and whether two are the same."""

from dataclasses import dataclass
from functools import cmp_to_key

from utils.grading.answer_relations import is_name, oriented
from utils.grading.expression_values import NoValue, WorkBudget, sign_of_difference, symbols
from utils.grading.latex_atoms import Node

_INFINITY = ("constant", "infinity")
_MINUS_INFINITY = ("negate", _INFINITY)
_INFINITE = {_INFINITY: 1, _MINUS_INFINITY: -1}


@dataclass(frozen=True)
class Interval:
    """From ``low`` to ``high``, with or without its ends; a point has both, and both the same."""

    low: Node
    low_closed: bool
    high: Node
    high_closed: bool


_REALS = Interval(_MINUS_INFINITY, False, _INFINITY, False)


def same_real_set(a: Node, b: Node, budget: WorkBudget) -> bool | None:
    """Whether two nodes are the same set of real numbers; None where one of them is no such set."""
    try:
        ours, theirs = real_set(a, budget), real_set(b, budget)
    except NoValue:
        return None
    return len(ours) == len(theirs) and all(
        (one.low_closed, one.high_closed) == (other.low_closed, other.high_closed)
        and _compare(one.low, other.low, budget) == 0
        and _compare(one.high, other.high, budget) == 0
        for one, other in zip(ours, theirs, strict=True)
    )


def real_set(node: Node, budget: WorkBudget) -> list[Interval]:
    """The set that an interval, {…}, a union, or an inequality of one unknown stands for, in order and
    without overlap. Raises expression_values.NoValue for any other node."""
    kind = node[0]
    if kind == "reals":
        return [_REALS]
    if kind == "tuple" and len(node[3]) == 2:
        (low, high), low_closed, high_closed = node[3], node[1] == "[", node[2] == "]"
        if _compare(low, high, budget) < 0 and not (
            low_closed and low in _INFINITE or high_closed and high in _INFINITE
        ):
            return [Interval(low, low_closed, high, high_closed)]
    if kind == "set":
        return _union([Interval(item, True, item, True) for item in node[1]], budget)
    if kind in ("union", "intersection", "difference"):
        return _combined(kind, [real_set(part, budget) for part in node[1:]], budget)
    if kind == "add" and node[2][0] == "negate":  # ℝ - {0}
        return _combined("difference", [real_set(node[1], budget), real_set(node[2][1], budget)], budget)
    if kind in ("and", "or", "list") and len(set(map(symbols, node[1]))) == 1:
        if any(part[0] != "relation" for part in node[1]):
            raise NoValue("a list")
        parts = [real_set(part, budget) for part in node[1]]
        both = [] if kind == "or" else _combined("intersection", parts, budget)
        return both if both or kind == "and" else _combined("union", parts, budget)
    if kind == "relation":
        return _solutions(node[1], node[2], budget)
    raise NoValue(f"no set: {kind}")


def _solutions(operands: tuple[Node, ...], signs: tuple[str, ...], budget: WorkBudget) -> list[Interval]:
    """Of x < 3, -2 ≤ x ≤ 7, x ≠ 5, x ∈ [-2, 7]."""
    if signs == ("in",) and is_name(operands[0]):
        return real_set(operands[1], budget)
    names = [operand for operand in operands if is_name(operand)]
    if len(names) != 1 or any(symbols(operand) for operand in operands if operand != names[0]):
        raise NoValue("no inequality of one unknown")
    parts = []
    for left, sign, right in oriented(operands, signs):
        if names[0] not in (left, right) or sign not in ("<", "<=", "!="):
            raise NoValue("not between the unknown and a number")
        end = right if left == names[0] else left
        if sign == "!=":
            parts.append(_complement([Interval(end, True, end, True)], budget))
        elif end == right:
            parts.append([Interval(_MINUS_INFINITY, False, end, sign == "<=")])
        else:
            parts.append([Interval(end, sign == "<=", _INFINITY, False)])
    return _combined("intersection", parts, budget)


def _combined(kind: str, parts: list[list[Interval]], budget: WorkBudget) -> list[Interval]:
    whole = parts[0]
    for other in parts[1:]:
        if kind == "union":
            whole = _union([*whole, *other], budget)
        else:  # what is outside neither, or for a difference in the first and outside the second
            outside = other if kind == "difference" else _complement(other, budget)
            whole = _complement(_union([*_complement(whole, budget), *outside], budget), budget)
    return whole


def _union(intervals: list[Interval], budget: WorkBudget) -> list[Interval]:
    """The intervals in order, those that overlap or touch joined; empty ones left out."""

    def by_low(one: Interval, other: Interval) -> int:
        return _compare(one.low, other.low, budget) or other.low_closed - one.low_closed

    joined: list[Interval] = []
    for interval in sorted(intervals, key=cmp_to_key(by_low)):
        order = _compare(interval.low, interval.high, budget)
        if order > 0 or (order == 0 and not (interval.low_closed and interval.high_closed)):
            continue
        if not joined:
            joined.append(interval)
            continue
        last = joined[-1]
        gap = _compare(interval.low, last.high, budget)
        if gap > 0 or (gap == 0 and not (interval.low_closed or last.high_closed)):
            joined.append(interval)
            continue
        order = _compare(interval.high, last.high, budget)
        if order >= 0:
            closed = interval.high_closed or (order == 0 and last.high_closed)
            joined[-1] = Interval(last.low, last.low_closed, interval.high, closed)
    return joined


def _complement(intervals: list[Interval], budget: WorkBudget) -> list[Interval]:
    """All real numbers outside the intervals, which must be in order and without overlap."""
    gaps = []
    low, low_closed = _MINUS_INFINITY, False
    for interval in intervals:
        gaps.append(Interval(low, low_closed, interval.low, not interval.low_closed))
        low, low_closed = interval.high, not interval.high_closed
    return _union([*gaps, Interval(low, low_closed, _INFINITY, False)], budget)


def _compare(a: Node, b: Node, budget: WorkBudget) -> int:
    """-1, 0 or 1 as a is below, at or above b; infinity is an end like any other."""
    if a in _INFINITE or b in _INFINITE:
        x, y = _INFINITE.get(a, 0), _INFINITE.get(b, 0)
        return (x > y) - (x < y)
    return sign_of_difference(a, b, budget)
