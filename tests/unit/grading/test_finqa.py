"""FinQA programs: the official rules and traps case by case, real golds, an independent interpreter."""

import json
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.grading.equivalence import program_match
from utils.grading.execute import (
    ProgramRun,
    execute,
    execution_match,
    parse_gold_value,
    tolerant_match,
)
from utils.grading.program import (
    MAX_STEPS,
    MAX_TOKEN_CHARS,
    OPERATIONS,
    ProgramError,
    program_steps,
    step_overlap,
    tokenize_program,
)

TABLE = [
    ["in millions", "2001", "2002"],
    ["cash", "$ 1,200", "-80 ( 80 )"],
    ["margin", "5%", "7 %"],
    ["gap", "3", "-"],
    ["loss", "( 5 )", "3"],
    ["twice", "1", "2"],
    ["twice", "3", "4"],
    ["bare"],
    ["# of stores", "1", "2"],
    ["total (net)", "1", "2"],
]


def run(program: str) -> ProgramRun:
    return execute(tokenize_program(program), TABLE)


# ------------------------------------------------------------------------------------------- real golds


@pytest.mark.parametrize(("split", "rows"), [("train", 1677), ("dev", 450), ("test", 431)])
def test_every_real_gold_program_executes_to_its_answer_and_equals_itself(shared_data, split, rows):
    data = json.loads((shared_data / "finqa" / "dataset" / f"{split}.json").read_text(encoding="utf-8"))
    executing = same = 0
    for row in data:
        tokens = tokenize_program(row["qa"]["program"])
        gold = row["qa"]["exe_ans"]
        executing += execution_match(execute(tokens, row["table"]), parse_gold_value(gold))
        same += program_match(tokens, tokens)
    assert (len(data), executing, same) == (rows, rows, rows)


def test_real_gold_programs_lose_their_last_step_without_eof(shared_data):
    data = json.loads((shared_data / "finqa" / "dataset" / "test.json").read_text(encoding="utf-8"))
    for row in data:
        tokens = tokenize_program(row["qa"]["program"])[:-1]
        execution = execute(tokens, row["table"])
        if len(tokens) == 4:
            assert execution.error is ProgramError.EMPTY
        else:
            assert execution == execute([*tokens[:-4], "EOF"], row["table"])


# -------------------------------------------------------------------------------------- tokens and traps


@pytest.mark.parametrize(
    ("program", "tokens"),
    [
        ("add(1, 2)", ["add(", "1", "2", ")", "EOF"]),
        ("add(1,2)", ["add(", "1,2", ")", "EOF"]),
        ("add(1, 2), exp(#0, 3)", ["add(", "1", "2", ")", "exp(", "#0", "3", ")", "EOF"]),
        ("table_sum(a, b, none)", ["table_sum(", "a", "b", "none", ")", "EOF"]),
        ("add(add(1, 2), 3)", ["add(", "add(", "1", "2", ")", "3", ")", "EOF"]),
        ("add( 1, 2 )", ["add(", " 1", "2 ", ")", "EOF"]),
        ("", ["EOF"]),
    ],
)
def test_tokens_are_split_as_in_the_official_code(program, tokens):
    assert tokenize_program(program) == tokens


@pytest.mark.parametrize(
    ("program", "value"),
    [
        ("add(1, 2)", 3.0),
        ("subtract(1, 2)", -1.0),
        ("multiply(3, const_100)", 300.0),
        ("divide(1, 3)", 0.33333),
        ("exp(2, 10)", 1024.0),
        ("greater(2, 1)", "yes"),
        ("greater(1, 1)", "no"),  # strict
        ("table_max(cash, none)", 1200.0),
        ("table_min(cash, none)", -80.0),
        ("table_sum(cash, none)", 1120.0),
        ("table_average(cash, none)", 560.0),
        ("table_max(margin, none)", 0.07),
        ("table_sum(twice, none)", 7.0),  # of two rows with one name the last counts
        ("table_max(in millions, none)", 2002.0),  # the header is a row like any other
        ("table_max(cash, whatever)", 1200.0),  # the second argument must exist and is ignored
        ("table_sum(bare, none)", 0.0),
        ("add(5%, 1,000)", 1000.05),
        ("add(const_m1, 0)", -1.0),
        ("add(1e3, 1_000)", 2000.0),  # whatever float() takes
        ("divide(1, inf)", 0.0),
        ("add( 1, 2 )", 3.0),  # blanks inside the parentheses
        ("add(1, , 2)", 3.0),  # an empty argument vanishes
        ("add(1|2)", 3.0),  # tokens are re-joined by "|"
        ("add(1, 2), subtract(3", 3.0),  # an unfinished last step is dropped
        ("divide(1, 3), multiply(#0, 3)", 1.0),  # only the final value is rounded
        ("divide(1, 0.3), subtract(#0, 3.33333)", 0.0),
        ("exp(-8, 0.5), add(1, 2)", 3.0),  # a complex power in a step that nothing uses
        ("greater(1, 2), greater(2, 1), greater(#1, #0)", "yes"),  # words are compared as text
    ],
)
def test_values(program, value):
    assert run(program) == ProgramRun(value, None)


@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("", ProgramError.EMPTY),
        ("add(1, 2", ProgramError.EMPTY),
        ("add(1,2)", ProgramError.BAD_STRUCTURE),
        ("add(1, 2),add(#0, 1)", ProgramError.UNKNOWN_OPERATION),
        ("add(1, 2) ", ProgramError.BAD_STRUCTURE),
        ("add(1, add(2, 3))", ProgramError.BAD_STRUCTURE),
        ("add 1, 2)", ProgramError.BAD_STRUCTURE),
        ("(add(1, 2)", ProgramError.UNKNOWN_OPERATION),
        ("power(1, 2)", ProgramError.UNKNOWN_OPERATION),
        ("table_sum(total (net), none)", ProgramError.BAD_STRUCTURE),
        ("table_sum(a, b, none)", ProgramError.BAD_STRUCTURE),
        ("add($5, 1)", ProgramError.BAD_NUMBER),
        ("add(const_x, 1)", ProgramError.BAD_NUMBER),
        ("add(m1, 1)", ProgramError.BAD_NUMBER),
        ("add(none, 1)", ProgramError.BAD_NUMBER),
        ("add(#0, 1)", ProgramError.BAD_REFERENCE),
        ("add(1, 2), add(#2, 1), add(1, 1)", ProgramError.BAD_REFERENCE),
        ("add(1, 2), add(#-1, 1)", ProgramError.BAD_REFERENCE),
        ("add(1, 2), add(#x, 1)", ProgramError.BAD_REFERENCE),
        ("table_sum(# of stores, none)", ProgramError.BAD_REFERENCE),
        ("table_max(cash, none), table_min(#0, none)", ProgramError.BAD_REFERENCE),  # official bug, not kept
        ("divide(1, 0)", ProgramError.DIVISION_BY_ZERO),
        ("exp(0, -1)", ProgramError.DIVISION_BY_ZERO),
        ("exp(10, 1000)", ProgramError.OVERFLOW),
        ("multiply(1e300, 1e300)", ProgramError.OVERFLOW),
        ("add(inf, 1)", ProgramError.OVERFLOW),
        ("exp(-8, 0.5)", ProgramError.NOT_REAL),
        ("exp(-8, 0.5), greater(#0, 1)", ProgramError.NOT_REAL),
        ("add(nan, 1)", ProgramError.NOT_REAL),
        ("greater(1, 2), add(#0, 1)", ProgramError.TYPE),
        ("greater(1, 2), add(#0, #0)", ProgramError.TYPE),
        ("greater(1, 2), greater(#0, 1)", ProgramError.TYPE),
        ("table_sum(Cash, none)", ProgramError.BAD_TABLE_ROW),
        ("table_sum(gap, none)", ProgramError.BAD_TABLE_CELL),
        ("table_sum(loss, none)", ProgramError.BAD_TABLE_CELL),
        ("table_max(bare, none)", ProgramError.BAD_TABLE_CELL),
        (", ".join(["add(1, 2)"] * (MAX_STEPS + 1)), ProgramError.TOO_LONG),
        (f"add({'1' * (MAX_TOKEN_CHARS + 1)}, 2)", ProgramError.TOO_LONG),
    ],
)
def test_failures_have_a_type(program, error):
    assert run(program) == ProgramRun(None, error)


def test_doubling_texts_or_powers_stay_small():
    squares = ["exp(10, 300)"] + [f"multiply(#{i}, #{i})" for i in range(MAX_STEPS - 1)]
    assert run(", ".join(squares)).error is ProgramError.OVERFLOW
    towers = ["exp(9, 9)"] + [f"exp(#{i}, #{i})" for i in range(MAX_STEPS - 1)]
    assert run(", ".join(towers)).error is ProgramError.OVERFLOW


def test_a_table_row_without_cells_makes_table_operations_invalid():
    execution = execute(tokenize_program("table_sum(cash, none)"), [*TABLE, []])
    assert execution.error is ProgramError.BAD_TABLE_ROW
    assert execute(tokenize_program("add(1, 2)"), [[]]).value == 3.0


@pytest.mark.parametrize("tokens", [[], ["EOF"], ["add("], [None, 1, 2], ["add(", "1", 2, ")", "EOF"]])
def test_broken_token_lists_have_no_value(tokens):
    execution = execute(tokens, TABLE)
    assert execution.value is None and execution.error is not None


# ---------------------------------------------------------------------------------------------- matching


def test_execution_match_is_exact_and_fails_closed():
    assert execution_match(ProgramRun(0.935, None), 0.935)
    assert not execution_match(ProgramRun(0.93501, None), 0.935)
    assert not execution_match(ProgramRun("yes", None), 1.0)
    assert not execution_match(ProgramRun(None, ProgramError.EMPTY), "")
    assert not execution_match(ProgramRun(None, ProgramError.EMPTY), None)


@pytest.mark.parametrize(
    ("value", "gold", "matches"),
    [
        (0.9355, 0.935, True),
        (0.9365, 0.935, False),
        (93.5, 0.935, True),
        (0.00935, 0.935, True),
        (-0.935, 0.935, False),
        (0.0, 0.0, True),
        (1e-9, 0.0, False),
        ("yes", "yes", True),
        ("yes", 1.0, False),
        (None, 0.0, False),
    ],
)
def test_tolerant_match(value, gold, matches):
    assert tolerant_match(value, gold) is matches


def test_percent_scale_can_be_switched_off():
    assert not tolerant_match(93.5, 0.935, percent_scale=False)


@pytest.mark.parametrize("text", ["", "n/a", "nan", "inf", "1e999", None, True, [], "YES"])
def test_an_unusable_gold_value_is_an_error(text):
    with pytest.raises(ValueError, match="gold answer"):
        parse_gold_value(text)


@pytest.mark.parametrize(
    ("gold", "predicted", "same"),
    [
        ("add(1, 2)", "add(2, 1)", True),
        ("subtract(1, 2)", "subtract(2, 1)", False),
        ("subtract(5, 3), divide(#0, 2)", "divide(5, 2), divide(3, 2), subtract(#0, #1)", True),
        ("divide(1, 2), divide(#0, 2)", "multiply(2, 2), divide(1, #0)", True),
        ("subtract(2, 3), subtract(1, #0)", "subtract(1, 2), add(#0, 3)", True),
        ("add(1, 2), subtract(#0, 2)", "divide(1, 2), multiply(#0, 2)", True),
        # simplify is no normal form: a product and its expansion may both stay as they are.
        (
            "multiply(1, 1), multiply(2, 2), subtract(#0, #1)",
            "add(1, 2), subtract(1, 2), multiply(#0, #1)",
            False,
        ),
        ("greater(1, 2)", "greater(2, 1)", False),
        ("multiply(3, const_100)", "multiply(3, 100)", False),  # constants have no value
        ("multiply(3, 5%)", "multiply(3, 0.05)", False),
        ("multiply(3, 1000)", "multiply(3, 1,000)", False),  # arguments are the same by spelling
        ("divide(3, 2), subtract(#0, const_1)", "subtract(3, 2), divide(#0, 2)", False),
        ("divide(3, 2)", "divide(3, 2), multiply(#0, const_100)", False),
        ("add(1, 2)", "multiply(1, 2), add(1, 2)", True),  # unused steps are ignored ...
        ("add(1, 2)", "multiply(1, 3), add(1, 2)", False),  # ... unless they use anything new
        ("table_sum(a, none), add(#0, 1)", "table_sum(a, none), add(1, #0)", True),
        ("table_sum(a, none), add(#0, 1)", "table_sum(a, nothing), add(#0, 1)", False),
        # A table step is known by its exact text, in which every step but the first begins with "|".
        (
            "table_min(a, none), table_max(a, none), subtract(#1, #0)",
            "table_max(a, none), table_min(a, none), subtract(#0, #1)",
            False,
        ),
        ("exp(2, 3)", "exp(2, 3)", True),
        ("exp(2, 3)", "exp(3, 2)", False),
        (
            "exp(2, 3), multiply(#0, #0)",
            "exp(2, 3), multiply(#0, #0), divide(#1, #0), multiply(#2, #0)",
            True,
        ),
        ("greater(1, 2)", "greater(1, 2), add(#0, #0)", False),
        ("add(1, 2)", "add(1, #0)", False),
        ("add(1, 2)", "add(1,2)", False),
        ("add(1, 2)", "", False),
    ],
)
def test_program_match(gold, predicted, same):
    assert program_match(tokenize_program(predicted), tokenize_program(gold)) is same


@pytest.mark.parametrize("gold", ["", "add(1,2)", "add(1, #0)", "greater(1, 2), add(#0, 1)"])
def test_an_unreadable_gold_program_is_an_error(gold):
    with pytest.raises(ValueError, match="gold program"):
        program_match(tokenize_program("add(1, 2), subtract(#0, 1)"), tokenize_program(gold))


def test_a_comparison_that_takes_too_long_counts_as_different():
    tower = ", ".join(["exp(2, 3)"] + [f"exp(#{i}, #{i})" for i in range(20)])
    grown = tower + ", add(#20, 3)"
    assert program_match(tokenize_program(grown), tokenize_program(tower), timeout=0.5) is False
    assert program_match(tokenize_program("add(2, 1)"), tokenize_program("add(1, 2)")) is True


def test_steps_and_their_overlap():
    gold = program_steps(tokenize_program("subtract(5, 3), divide(#0, 3)"))
    assert gold == [("subtract", "5", "3"), ("divide", "#0", "3")]
    assert program_steps(tokenize_program("add(1,2)")) == []
    swapped = program_steps(tokenize_program("subtract(3, 5), divide(#0, 3)"))
    assert step_overlap(swapped, gold) == 0.5
    assert step_overlap(gold, gold) == 1.0
    assert step_overlap(gold[:1], gold) == 0.5
    assert step_overlap(gold[:1] * 4, gold) == 0.25  # listing steps does not pay
    assert step_overlap([("add", "1", "2")], [("add", "2", "1")]) == 1.0
    assert step_overlap([], gold) == step_overlap(gold, []) == 0.0


# --------------------------------------------------------------------------------------------- properties

NUMBERS = st.integers(-40, 40).map(lambda n: str(n / 4))  # exact in float64
ARITHMETIC = ("add", "subtract", "multiply", "divide", "exp", "greater")


@st.composite
def programs(draw) -> list[tuple[str, str, str]]:
    steps = []
    for index in range(draw(st.integers(1, 5))):
        argument = st.one_of(NUMBERS, st.integers(0, index - 1).map("#{}".format)) if index else NUMBERS
        steps.append((draw(st.sampled_from(ARITHMETIC)), draw(argument), draw(argument)))
    return steps


def text_of(steps: list[tuple[str, str, str]]) -> str:
    return ", ".join(f"{op}({a}, {b})" for op, a, b in steps)


class Undefined(Exception):
    """The reference has no value, or none that float64 can be held to."""


def reference(steps, index: int = -1) -> Fraction | bool:
    """Exact value by recursion from a step over rationals, with no code in common with the executor."""
    op, *arguments = steps[index]
    x, y = (reference(steps, int(a[1:])) if a[0] == "#" else Fraction(a) for a in arguments)
    if isinstance(x, bool) or isinstance(y, bool) or max(abs(x), abs(y)) > 10**6:
        raise Undefined
    if op == "greater":
        if x != y and abs(x - y) < Fraction(1, 10**6):
            raise Undefined  # closer than float64 can tell after rounding errors
        if x == y and (x.denominator & (x.denominator - 1)):
            raise Undefined
        return x > y
    if op == "exp":
        if y.denominator != 1 or abs(y) > 12 or (x == 0 and y < 0):
            raise Undefined
        return x ** int(y)
    if op == "divide" and abs(y) < Fraction(1, 10**4):
        raise Undefined
    return {"add": lambda: x + y, "subtract": lambda: x - y, "multiply": lambda: x * y}.get(
        op, lambda: x / y
    )()


@settings(max_examples=300)
@given(programs())
def test_executor_agrees_with_an_exact_reference(steps):
    try:
        expected = [reference(steps, index) for index in range(len(steps))][-1]
    except Undefined:
        return
    execution = run(text_of(steps))
    assert execution.error is None
    if isinstance(expected, bool):
        assert execution.value == ("yes" if expected else "no")
    else:
        assert abs(Fraction(execution.value) - expected) <= Fraction(6, 10**6) + abs(expected) / 10**9


@given(programs(), st.data())
def test_commuting_operands_keeps_program_and_value(steps, data):
    if any(op == "greater" for op, _, _ in steps[:-1]):
        return
    commuted = [
        (op, b, a) if op in ("add", "multiply") and data.draw(st.booleans()) else (op, a, b)
        for op, a, b in steps
    ]
    assert program_match(tokenize_program(text_of(commuted)), tokenize_program(text_of(steps)))
    assert run(text_of(commuted)) == run(text_of(steps))


@given(programs(), programs())
def test_programs_that_match_have_the_same_value(steps, others):
    """Soundness: with the gold's arguments replaced one for one, equal formulas give equal values."""
    arguments = [a for _, *pair in steps for a in pair if a[0] != "#"]
    if not arguments or any(op in ("exp", "greater") for op, _, _ in steps + others):
        return
    numbers = iter(arguments * 20)
    recast = [(op, *(a if a[0] == "#" else next(numbers) for a in pair)) for op, *pair in others]
    if program_match(tokenize_program(text_of(recast)), tokenize_program(text_of(steps))):
        try:
            assert reference(steps) == reference(recast)
        except Undefined:
            return


SCRAPS = st.one_of(
    st.sampled_from([f"{op}(" for op in OPERATIONS]),
    st.sampled_from(
        [")", "(", "EOF", "#0", "#1", "#", "|", "", " ", "1", "5%", "const_1", "cash", "none", "yes"]
    ),
    st.text(max_size=6),
)


@settings(max_examples=300)
@given(st.one_of(st.lists(SCRAPS, max_size=14), st.lists(SCRAPS, max_size=14).map(lambda x: [*x, "EOF"])))
def test_no_token_list_raises(tokens):
    execution = execute(tokens, TABLE)
    assert (execution.value is None) != (execution.error is None)
    assert isinstance(program_steps(tokens), list)
    assert program_match(tokens, tokenize_program("add(1, 2)")) in (True, False)


@settings(max_examples=200)
@given(st.text(alphabet="ad(), #|01%e$tble_sumcash\n", max_size=60))
def test_no_text_raises(text):
    execution = run(text)
    assert (execution.value is None) != (execution.error is None)
