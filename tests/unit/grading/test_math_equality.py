r"""MATH equality: near misses of every kind, the published golds respelled and mutated, and hostile answers.

The near misses are the conformance cases of tests/external/conformance/, which any grader can be run on.
"""

import json
import threading
from collections import defaultdict
from fractions import Fraction
from pathlib import Path

import mpmath
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.grading import TOKENS, mutations, respellings
from utils.grading.expression_values import Undecided, WorkBudget, same_value
from utils.grading.latex_atoms import Unreadable
from utils.grading.latex_reader import read
from utils.grading.tasks.hendrycks_math import MAX_ANSWER_CHARS, math_equal
from utils.grading.worker import WorkerFailure

CASES = Path(__file__).parents[2] / "external" / "conformance" / "math.jsonl"
# Right answers that are rejected, each because the reader does not know the form (docs/grading.md).
REJECTED = {
    ("-2", "\\begin{vmatrix}1&2\\\\3&4\\end{vmatrix}"),
    ("12:00\\text{ p.m.}", "\\text{noon}"),
    ("2516_8", "2,516_8"),
    ("1010100_2", "1{,}010{,}100_2"),
    ("y=2x+3", "f(x)=2x+3"),
    ("\\text{(A)}", "A)"),
    ("12", "\\sum_{k=1}^{3} 2k"),
    ("(-\\infty,-2]\\cup[2,\\infty)", "|x|\\ge2"),
    ("(-2,2)", "|x|<2"),
    ("162\\text{ minutes}", "2\\text{ hours }42\\text{ minutes}"),
    ("60", "60\\frac{\\text{miles}}{\\text{hour}}"),
    ("\\overline{CD}", "\\overline{DC}"),
    ("(0,\\infty)", "\\mathbb{R}^+"),
    ("(-\\infty,0)\\cup (0,\\infty)", "\\text{all real numbers except }0"),
    ("2\\sqrt3", "\\sqrt12"),
}


def cases_by_kind() -> dict[str, list[dict]]:
    kinds = defaultdict(list)
    for line in CASES.read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        kinds[case["kind"]].append(case)
    return kinds


@pytest.mark.parametrize(("kind", "cases"), cases_by_kind().items())
def test_near_misses(kind, cases):
    assert len(cases) > 2
    for case in cases:
        gold, answer = case["gold"], case["answer"]
        right = case["right"] and (gold, answer) not in REJECTED
        assert math_equal(gold, answer) is right, (gold, answer)


def golds(shared_data) -> list[str]:
    """The distinct published golds that are not whole numbers."""
    rows = [
        json.loads(line)
        for split in ("train", "test")
        for line in (shared_data / "math" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    found = {row["answer"] for row in rows if row["answer"].strip()}
    return sorted(gold for gold in found if not gold.strip().lstrip("-").isdigit())


def test_every_gold_is_read_whole(shared_data):
    unread = []
    for gold in golds(shared_data):
        try:
            read(gold)
        except Unreadable:
            unread.append(gold)
    assert unread == [
        "\\approx 8.24 \\text{ mph}"
    ]  # an answer of that form is refused; a gold's sign is dropped
    assert math_equal(unread[0], "8.24")


def test_sampled_golds_equal_their_respellings_and_no_mutation(shared_data):
    sample = golds(shared_data)[::40]
    assert len(sample) > 70
    right = [(gold, answer) for gold in sample for answer in respellings(gold)]
    wrong = [(gold, answer) for gold in sample for answer in mutations(gold)]
    assert len(right) > 600 and len(wrong) > 600
    assert [pair for pair in right if not math_equal(*pair)] == []
    assert [pair for pair in wrong if verdict(*pair) is True] == []


# -------------------------------------------------------------------------------------------- values


@settings(max_examples=100, deadline=None)
@given(st.fractions(max_denominator=999), st.fractions(max_denominator=999))
def test_fractions_are_compared_exactly(one, other):
    assert math_equal(f"\\frac{{{one.numerator}}}{{{one.denominator}}}", f"{one.numerator}/{one.denominator}")
    text = f"\\frac{{{other.numerator}}}{{{other.denominator}}}"
    assert math_equal(f"\\frac{{{one.numerator}}}{{{one.denominator}}}", text) is (one == other)


@pytest.mark.parametrize("exponent", [5, 50, 500])
@pytest.mark.parametrize("base", ["\\pi", "\\sqrt{2}", "1", "e^{2}"])
def test_a_difference_however_small_is_seen(base, exponent):
    assert not math_equal(base, f"{base}+10^{{-{exponent}}}")
    assert math_equal(base, f"{base}+10^{{-{exponent}}}-\\frac{{1}}{{10^{{{exponent}}}}}")


@pytest.mark.parametrize("digits", [10, 25, 60, 200])
def test_no_decimal_or_fraction_is_an_irrational_number(digits):
    with mpmath.workdps(digits + 20):
        assert not math_equal(r"\pi", mpmath.nstr(mpmath.pi, digits))
        assert not math_equal(r"\sqrt{2}+1", mpmath.nstr(mpmath.sqrt(2) + 1, digits))
    above, below = 1, 1
    while below < 10**digits:  # the convergents of √2, as close as any fraction of their size
        above, below = above + 2 * below, above + below
    assert not math_equal(r"\sqrt{2}", rf"\frac{{{above}}}{{{below}}}")
    assert math_equal(r"\sqrt{2}", rf"\frac{{{above}\sqrt{{2}}}}{{{above}}}")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"\sqrt{5+2\sqrt{6}}", r"\sqrt{2}+\sqrt{3}"),
        (r"\cos\frac{\pi}{5}", r"\frac{1+\sqrt{5}}{4}"),
        (r"\arctan\frac{1}{2}+\arctan\frac{1}{3}", r"\frac{\pi}{4}"),
        (r"\sqrt[3]{7+5\sqrt{2}}", r"1+\sqrt{2}"),
        (r"\binom{2n}{n}", r"\frac{(2n)!}{n!n!}"),
        (r"(a+b)^5-(a-b)^5", r"2b(5a^4+10a^2b^2+b^4)"),
        (r"e^{i\theta}", r"\cos\theta+i\sin\theta"),
    ],
)
def test_identities_hold_and_their_near_misses_do_not(one, other):
    assert math_equal(one, other)
    assert not math_equal(one, f"{other}+10^{{-40}}")
    assert not math_equal(one, f"-({other})")


SMALL = st.integers(0, 3)
POINTS = [Fraction(n, 2) for n in range(-1, 8)]  # tell sets with ends between 0 and 3 apart


def joined(items, opening="", closing="") -> str:
    return opening + ", ".join(map(str, items)) + closing


@st.composite
def structures(draw):
    """A kind, what it says in Python's terms, and how it is written."""
    kind = draw(st.sampled_from(["list", "set", "tuple", "pairs", "column", "intervals"]))
    if kind == "pairs":
        pairs = draw(st.lists(st.tuples(SMALL, SMALL), min_size=2, max_size=3))
        return (
            kind,
            sorted(pairs),
            draw(st.sampled_from([", ", ";", r" \text{ and } "])).join(map(str, pairs)),
        )
    if kind == "intervals":
        parts = draw(
            st.lists(st.tuples(st.sampled_from("(["), SMALL, SMALL, st.sampled_from(")]")), max_size=3)
        )
        parts = [part for part in parts if part[1] < part[2]] or [("[", 0, 1, "]")]
        inside = {
            x
            for x in POINTS
            for opening, low, high, closing in parts
            if low < x < high or (x == low and opening == "[") or (x == high and closing == "]")
        }
        return kind, inside, r" \cup ".join(f"{o}{low}, {high}{c}" for o, low, high, c in parts)
    numbers = draw(st.lists(SMALL, min_size=2, max_size=4))
    if kind == "list":
        return kind, sorted(numbers), joined(numbers)
    if kind == "set":
        return kind, set(numbers), joined(numbers, r"\{", r"\}")
    if kind == "tuple":
        return kind, numbers, joined(numbers, "(", ")")
    return kind, numbers, r"\begin{pmatrix}" + r"\\".join(map(str, numbers)) + r"\end{pmatrix}"


@settings(max_examples=400, deadline=None)
@given(structures(), structures())
def test_collections_are_equal_where_what_they_say_is(one, other):
    (kind, value, text), (other_kind, other_value, other_text) = one, other
    assert math_equal(text, text.replace(" ", ""))
    if kind == other_kind:
        assert math_equal(text, other_text) is (value == other_value), (text, other_text)
    elif "tuple" in (kind, other_kind) and {"list", "set", "pairs"} & {kind, other_kind}:
        # parentheses may be left out, the order not; a pair of numbers may be meant as an interval
        left_out = kind == "tuple" and other_kind == "list" and [*map(int, other_text.split(","))] == value
        assert math_equal(text, other_text) is left_out, (text, other_text)


def test_the_tree_of_an_answer():
    half = ("number", Fraction(1, 2))
    assert read(r"(0.5,\pi]") == ("tuple", "(", "]", (half, ("constant", "pi")))
    assert read(r"2\frac{1}{2}") == ("number", Fraction(5, 2))
    assert read(r"x = \pm 3")[0] == "relation"
    for text in ("", "5 & 6", "3 4", r"\geq 5", "5^", r"\frac{1}", "(1,2", "1/2x y z ?", r"\int x", "x2"):
        with pytest.raises(Unreadable):
            read(text)


# ------------------------------------------------------------------------------------------- hostile


def verdict(gold: str, answer: str) -> bool | None:
    """None where the comparison is given up."""
    try:
        return math_equal(gold, answer)
    except WorkerFailure:
        return None


def test_what_would_cost_too_much_is_given_up():
    for answer in ("9^{9^{9^{9}}}", "99999999!", r"\binom{10^9}{5\cdot10^8}", "e^{e^{e^{e}}}"):
        with pytest.raises(WorkerFailure, match="not compared"):
            math_equal("5", answer)
        assert math_equal(answer, answer.replace(r"\cdot", r"\times "))
    with pytest.raises(WorkerFailure, match="too long"):
        math_equal("5", "5" * (MAX_ANSWER_CHARS + 1))
    budget = WorkBudget(10)
    with pytest.raises(Undecided):
        same_value(read(r"\sqrt{2}+\sqrt{3}+\sqrt{5}"), read("6"), budget)
    assert budget.fuel < 0


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(TOKENS), max_size=40), st.sampled_from(["5", r"\frac{\pi}{2}", "(1,2]", "x=3"])
)
def test_any_answer_has_a_verdict(tokens, gold):
    assert verdict(gold, "".join(tokens)) in (True, False, None)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_any_text_has_a_verdict_and_equals_itself(text):
    assert verdict("5", text) in (True, False, None)
    assert verdict(text, text) in (bool(text.strip()), False)


@pytest.mark.parametrize("name", ["ln", "log", "lg", "sin", "arctan", "exp", "max", "gcd", "sqrt", "binom1"])
@pytest.mark.parametrize("empty", [r"\emptyset", r"\{\}", r"(\emptyset)", "{}", "()"])
def test_a_function_of_nothing_has_a_verdict(name, empty):
    answer = rf"\{name}{empty}"
    for gold in ("110", r"\sqrt2", rf"1+{answer}"):
        assert verdict(gold, answer) is False
        assert verdict(gold, rf"{answer}+{answer}") is False


def test_threads_do_not_share_a_precision():
    pairs = [
        (rf"\sqrt{{{n}}}", rf"\frac{{{n}}}{{\sqrt{{{n}}}}}+{n % 2}\cdot10^{{-{40 * n}}}")
        for n in range(2, 26)
    ]
    verdicts: dict[int, bool] = {}
    threads = [
        threading.Thread(target=lambda n=n, pair=pair: verdicts.update({n: math_equal(*pair)}))
        for n, pair in enumerate(pairs)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == {n: n % 2 == 0 for n in range(24)}
