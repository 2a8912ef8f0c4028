"""Parts of relations and of answers with ±: what is a name, which way a sign points, both signs apart."""

from collections.abc import Iterator
from itertools import product

from utils.grading.expression_values import Undecided
from utils.grading.latex_atoms import Node

_TURNED = {">": "<", ">=": "<="}
_COLLECTIONS = ("list", "and", "or", "set")
_SIGNS = ("plus_minus", "minus_plus")
MAX_SIGNS = 4


def is_name(node: Node) -> bool:
    """What may stand before "=" in an assignment: x, f(x), AB, "Area", (x, y)."""
    if node[0] == "tuple":
        return all(map(is_name, node[3]))
    return node[0] in ("symbol", "words") or node[:2] in (("call", "f"), ("call", "g"))


def is_assignment(node: Node) -> bool:
    """Whether the node is a name, "=", and something."""
    return node[0] == "relation" and node[2] == ("=",) and is_name(node[1][0])


def name_of(node: Node) -> str:
    """The name in an assignment as text, "" for any other node."""
    return str(node[1][0][1]) if is_assignment(node) else ""


def coordinates(node: Node, bare: bool = False) -> tuple[Node, ...] | None:
    """The parts of (2, 3), of x = 2, y = 3 in the order of the names, with ``bare`` of 2, 3; else None."""
    if node[0] == "tuple":
        return node[3] if node[1:3] == ("(", ")") else None
    items = node[1] if node[0] in ("list", "and") else ()
    names = sorted(map(name_of, items))
    if all(map(is_assignment, items)) and len(set(names)) == len(names):
        return tuple(sorted(items, key=name_of))
    return items if bare and node[0] == "list" else None


def oriented(operands: tuple[Node, ...], signs: tuple[str, ...]) -> list[tuple[Node, str, Node]]:
    """The relations of a chain as (left, sign, right), with < and ≤ for > and ≥; of 3 > x > 1 the first is
    1 < x."""
    turned = [
        (right, _TURNED[sign], left) if sign in _TURNED else (left, sign, right)
        for left, sign, right in zip(operands, signs, operands[1:], strict=False)
    ]
    return turned[::-1] if signs and signs[0] in _TURNED else turned


def with_each_sign(node: Node) -> Node:
    """The node with ± written out: a list of what it stands for, or in a list or a set more items."""
    if node[0] in _COLLECTIONS:
        return (node[0], tuple(variant for item in node[1] for variant in _variants(item)))
    variants = _variants(node)
    return variants[0] if len(variants) == 1 else ("list", tuple(variants))


def _variants(node: Node) -> list[Node]:
    """Both readings of ± (with ∓ against it); several ± without ∓ are independent of each other."""
    kinds = list(_signs(node))
    if not kinds:
        return [node]
    if len(kinds) > MAX_SIGNS:
        raise Undecided("too many ±")
    if "minus_plus" in kinds or len(kinds) == 1:
        choices = [[sign if kind == "plus_minus" else -sign for kind in kinds] for sign in (1, -1)]
    else:
        choices = [list(choice) for choice in product((1, -1), repeat=len(kinds))]
    return [_replaced(node, iter(choice)) for choice in choices]


def _signs(node: tuple) -> Iterator[str]:
    if node and node[0] in _SIGNS:
        yield node[0]
    for part in node:
        if isinstance(part, tuple):
            yield from _signs(part)


def _replaced(node: tuple, signs: Iterator[int]) -> tuple:
    if node and node[0] in _SIGNS:
        sign = next(signs)
        left, right = (part and _replaced(part, signs) for part in node[1:])
        right = ("negate", right) if sign < 0 else right
        return right if left is None else ("add", left, right)
    return tuple(_replaced(part, signs) if isinstance(part, tuple) else part for part in node)
