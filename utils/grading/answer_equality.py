r"""Whether two answers, read into trees, say the same: numbers, quantities, lists, pairs, sets, equations.

Where convention is divided, the rules follow published practice on MATH (docs/grading.md): a unit, a
degree or percent sign, or the name before "=" may be left out; what is stated must agree.
"""

from fractions import Fraction

from utils.grading.answer_relations import (
    coordinates,
    is_assignment,
    is_name,
    name_of,
    oriented,
    with_each_sign,
)
from utils.grading.expression_values import (
    NoValue,
    WorkBudget,
    proportional,
    same_value,
    sign_of_difference,
    symbols,
)
from utils.grading.latex_atoms import Node
from utils.grading.real_sets import same_real_set

_LISTS = ("list", "and", "or")
_SETS = ("set", "tuple", "reals", "union", "intersection", "difference")
_PERCENT = (("percent", 1),)


def answers_equal(gold: Node, answer: Node) -> bool:
    """Whether the answer says what the gold says. Raises expression_values.Undecided."""
    return _Comparison().equal(with_each_sign(gold), with_each_sign(answer))


class _Comparison:
    """One verdict and what it may still cost."""

    def __init__(self) -> None:
        self.budget = WorkBudget()

    def equal(self, gold: Node, answer: Node) -> bool:
        if gold == answer:
            return True
        self.budget.spend(1)
        kinds = gold[0], answer[0]
        if "relation" in kinds:
            return self.relations(gold, answer)
        if kinds == ("tuple", "tuple") and gold[1:3] == answer[1:3]:
            return self.in_order(gold[3], answer[3])
        if set(kinds) == {"tuple", "set"}:  # {(1, 2)} is the one solution (1, 2)
            inside = [
                node[1][0] if node[0] == "set" and len(node[1]) == 1 else node for node in (gold, answer)
            ]
            if inside != [gold, answer]:
                return self.equal(*inside)
        if "matrix" in kinds:
            return self.matrices(gold, answer)
        if (same := same_real_set(gold, answer, self.budget)) is not None:
            return same
        if "tuple" in kinds:
            ours, theirs = coordinates(gold), coordinates(answer, bare=True)
            if ours is None or theirs is None:
                return False
            return len(ours) > 1 and self.in_order(ours, theirs)
        if set(kinds) & {"set", *_LISTS}:
            return self.collections(gold, answer)
        if "ratio" in kinds:
            return self.ratios(gold, answer)
        if "clock" in kinds:
            return kinds == ("clock", "clock") and _same_clock(gold[1:], answer[1:])
        if kinds[0] == "based" and gold[2] != 10:
            return False  # other digits or another base; "1358" is no answer in base 8
        return self.quantities(gold, answer)

    # --------------------------------------------------------------------------------- single values

    def scalars(self, a: Node, b: Node) -> bool:
        try:
            return a == b or same_value(a, b, self.budget)
        except NoValue:
            return False

    def quantities(self, gold: Node, answer: Node) -> bool:
        """Equal values, units that do not contradict each other; a unit or a percent sign may be left out."""
        if self.same_quantity(gold, answer):
            return True
        (value, unit), (other, other_unit) = _parted(gold), _parted(answer)
        if (unit is None) == (other_unit is None) or not self.scalars(value, other):
            return False
        # A gold between 0 and 1 is a share, and 0.5% is not 0.5.
        return other_unit is None or other_unit[0] != _PERCENT or not self.is_share(value)

    def same_quantity(self, a: Node, b: Node) -> bool:
        """Equal with their units: 80 cents are 0.80 dollars, 50% is 1/2, and 5 cm are not 5."""
        (x, unit), (y, other) = (_as_fraction(*_parted(node)) for node in (a, b))
        if unit is None or other is None:
            return unit == other and self.scalars(x, y)
        dimensions = [dict(one) for one, _ in (unit, other)]
        if {"unit"} in map(set, dimensions):  # "square units" do not say of what
            return sum(dimensions[0].values()) == sum(dimensions[1].values()) and self.scalars(x, y)
        scaled = [("multiply", ("number", size), value) for value, (_, size) in ((x, unit), (y, other))]
        return dimensions[0] == dimensions[1] and self.scalars(*scaled)

    def is_share(self, value: Node) -> bool:
        try:
            return [sign_of_difference(value, _whole(n), self.budget) for n in (0, 1)] == [1, -1]
        except NoValue:
            return False

    def ratios(self, gold: Node, answer: Node) -> bool:
        """2:6 is 1:3 and 1/3."""
        left, right = _ratio(gold), _ratio(answer)
        if left is None or right is None or len(left) != len(right):
            return False
        (a, *ours), (b, *theirs) = left, right
        return all(
            self.scalars(("multiply", a, y), ("multiply", b, x))
            and not any(self.scalars(term, _whole(0)) for term in (a, b, x, y))
            for x, y in zip(ours, theirs, strict=True)
        )

    # ------------------------------------------------------------------------------------ collections

    def in_order(self, gold: tuple[Node, ...], answer: tuple[Node, ...]) -> bool:
        return len(gold) == len(answer) and all(map(self.equal, gold, answer))

    def collections(self, gold: Node, answer: Node) -> bool:
        """Lists and sets in any order, each item as often as it stands there."""
        ours, theirs = (list(node[1]) if node[0] in (*_LISTS, "set") else [node] for node in (gold, answer))
        if len(ours) != len(theirs):
            return False
        if ("ellipsis",) in (*ours, *theirs):
            return self.in_order(tuple(ours), tuple(theirs))
        for named, bare in ((ours, theirs), (theirs, ours)):
            if not any(map(is_assignment, bare)) and len({name_of(item)[:1] for item in named}) > 1:
                return False  # x = 1, y = -2 are no two solutions 1, -2
        for item in ours:
            found = next((place for place, other in enumerate(theirs) if self.equal(item, other)), None)
            if found is None:
                return False
            del theirs[found]
        return True

    def matrices(self, gold: Node, answer: Node) -> bool:
        """Equal entry by entry; a column may be written as a tuple."""
        rows, others = _rows(gold), _rows(answer)
        if rows is None or others is None:
            return False
        return len(rows) == len(others) and all(map(self.in_order, rows, others))

    # -------------------------------------------------------------------------------------- relations

    def relations(self, gold: Node, answer: Node) -> bool:
        """Equations, inequalities, and values after a name or a computation."""
        ours, theirs = self.stated(gold), self.stated(answer)
        if ours and theirs:
            (names, values), (other_names, other_values) = ours, theirs
            agree = not names or not other_names or set(names) & set(other_names)
            if agree and any(self.equal(value, other) for value in values for other in other_values):
                return True
        if gold[0] == answer[0] == "relation":
            return self.same_relation(gold, answer)
        return bool(same_real_set(gold, answer, self.budget))

    def stated(self, node: Node) -> tuple[list[Node], list[Node]] | None:
        """The names and the values of x = 5, 2 + 3 = 5, A = πr² ≈ 3.14; no values where it is false, None
        where it states none (an equation of several unknowns, an inequality)."""
        if node[0] != "relation":
            return [], [node]
        operands, signs = node[1:]
        if signs == ("in",) and is_name(operands[0]) and operands[1][0] in (*_LISTS, *_SETS):
            return [operands[0]], [operands[1]]
        if set(signs) - {"=", "~"}:
            return None
        if len(operands) == 2 and is_name(operands[1]) and not is_name(operands[0]):
            operands = operands[::-1]
        names: list[Node] = []
        if "~" in signs[:1] and is_name(operands[0]) and not _is_decimal(operands[-1]):
            return names, []  # x ≈ 5 says that x is not 5
        while len(operands) > 1 and is_name(operands[0]):
            names.append(operands[0])
            operands, signs = operands[1:], signs[1:]
        unknowns = frozenset().union(*map(symbols, operands))
        if unknowns & frozenset().union(*map(symbols, names)):
            return None
        for left, sign, right in zip(operands, signs, operands[1:], strict=False):
            holds = self.approximates(left, right) if sign == "~" else self.holds(left, right)
            if not holds:
                return None if unknowns else (names, [])
        rounded = [operand for operand in operands[1:] if "~" not in signs or _is_decimal(operand)]
        return names, [operands[0], *rounded]

    def approximates(self, exact: Node, rounded: Node) -> bool:
        """Whether the second is the first, rounded to its own decimal places."""
        (x, unit), (y, other) = _parted(exact), _parted(rounded)
        if y[0] != "number" or unit != other:
            return False
        places = next(n for n in range(64) if n == 63 or y[1] * 10**n == int(y[1] * 10**n))
        ends = (("number", y[1] + sign * Fraction(1, 2 * 10**places)) for sign in (-1, 1))
        try:
            return [sign_of_difference(x, end, self.budget) for end in ends] == [1, -1]
        except NoValue:
            return False

    def holds(self, left: Node, right: Node) -> bool:
        scalar = not {left[0], right[0]} & {"tuple", "set", "matrix", *_LISTS}
        return self.same_quantity(left, right) if scalar else self.equal(left, right)

    def same_relation(self, gold: Node, answer: Node) -> bool:
        """Equations up to a constant factor, inequalities up to a positive one; or the same solutions."""
        if symbols(gold) != symbols(answer):
            return False
        if (same := same_real_set(gold, answer, self.budget)) is not None:
            return same
        ours, theirs = (oriented(*node[1:]) for node in (gold, answer))
        if [sign for _, sign, _ in ours] != [sign for _, sign, _ in theirs]:
            return False
        if len(ours) == 1 and ours[0][1] != "in" and self.multiple(ours[0], theirs[0]):
            return True
        return all(self.in_order(one[::2], other[::2]) for one, other in zip(ours, theirs, strict=True))

    def multiple(self, one: tuple[Node, str, Node], other: tuple[Node, str, Node]) -> bool:
        first, second = (("add", left, ("negate", right)) for left, _, right in (one, other))
        try:
            return proportional(first, second, self.budget, positive=one[1] in ("<", "<="))
        except NoValue:
            return False


def _parted(node: Node) -> tuple[Node, tuple | None]:
    return node[1:] if node[0] == "quantity" else (node, None)


def _is_decimal(node: Node) -> bool:
    value = _parted(node)[0]
    return value[0] == "number" and value[1].denominator > 1


def _as_fraction(value: Node, unit: tuple | None) -> tuple[Node, tuple | None]:
    return (("divide", value, _whole(100)), None) if unit and unit[0] == _PERCENT else (value, unit)


def _whole(number: int) -> Node:
    return ("number", Fraction(number))


def _ratio(node: Node) -> tuple[Node, ...] | None:
    if node[0] == "number":
        return _whole(node[1].numerator), _whole(node[1].denominator)
    return node[1] if node[0] == "ratio" else node[1:] if node[0] == "divide" else None


def _rows(node: Node) -> tuple[tuple[Node, ...], ...] | None:
    """Rows of a matrix, of a multiple of one, or of a column written as a tuple."""
    if node[0] == "tuple":
        return tuple((item,) for item in node[3]) if node[1:3] == ("(", ")") else None
    if node[0] in ("multiply", "divide", "negate"):
        matrix = next((part for part in node[1:] if part[0] == "matrix"), None)
        if matrix and node[1:].count(matrix) == 1 and not (node[0] == "divide" and node[2] == matrix):
            return tuple(
                tuple((node[0], *(entry if part == matrix else part for part in node[1:])) for entry in row)
                for row in matrix[1]
            )
    return node[1] if node[0] == "matrix" else None


def _same_clock(a: tuple, b: tuple) -> bool:
    """The same reading; a.m. and p.m. may be left out on one side, or told by 24 hours there."""
    hours = [hour % 12 + 12 * (half == "p") if half else hour for hour, _, _, half in (a, b)]
    unsaid = "" in (a[3], b[3]) and a[0] == b[0]
    return a[1:3] == b[1:3] and (hours[0] == hours[1] or unsaid)
