"""Every real FinQA gold program, and what becomes of it when it is perturbed.

The rules of the released evaluator are written down a second time here, from docs/grading.md, without any of
the grader's code and with exact rationals instead of floats. What a perturbation does to program accuracy
follows from how it was made.
"""

import json
import random
import re
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.data.records import Record
from utils.grading.equivalence import program_match
from utils.grading.execute import execute, execution_match, parse_gold_value
from utils.grading.program import tokenize_program
from utils.grading.tasks import task_of

OPERATIONS = ["add", "subtract", "multiply", "divide", "exp", "greater"]
OPERATIONS += ["table_max", "table_min", "table_sum", "table_average"]
COUNTS = {"train": 1677, "dev": 450, "test": 431}


# ------------------------------------------------------------------------------- the rules, a second time


class Invalid(Exception):
    pass


def number(text: str) -> Fraction:
    text = text.replace(",", "")
    if re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", text):
        return Fraction(text)
    if re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)%", text):
        return Fraction(text[:-1]) / 100
    if text == "const_m1":
        return Fraction(-1)
    if re.fullmatch(r"const_\d+", text):
        return Fraction(text[6:])
    raise Invalid


def value_of(program: str, table: list[list[str]], eof: bool = True) -> Fraction | str:
    """A program's value before rounding, by the official rules; Invalid where it has none."""
    tokens = [t for part in program.split(", ") for t in re.findall(r"[^()]*\(|\)|[^()]+", part)]
    tokens = tokens if eof else tokens[:-1]  # what stands in the place of EOF is lost
    if any(tokens[i] not in [f"{op}(" for op in OPERATIONS] for i in range(0, len(tokens), 4)):
        raise Invalid
    if any(tokens[i] != ")" for i in range(3, len(tokens), 4)):
        raise Invalid
    results = []
    for start in range(0, len(tokens) - 3, 4):
        operation, *words = [token.strip() for token in tokens[start : start + 3]]
        if operation.startswith("table_"):
            results.append(table_value(operation[6:-1], words[0], table))
            continue
        x, y = (argument(word, results) for word in words)
        results.append(calculated(operation[:-1], x, y))
    if not results:
        raise Invalid
    return results[-1]


def argument(word: str, results: list) -> Fraction | str:
    if not word.startswith("#"):
        return number(word)
    if not word[1:].isdigit() or int(word[1:]) >= len(results):
        raise Invalid
    return results[int(word[1:])]


def calculated(operation: str, x: Fraction | str, y: Fraction | str) -> Fraction | str:
    if operation == "greater" and isinstance(x, str) == isinstance(y, str):
        return "yes" if x > y else "no"
    if isinstance(x, str) or isinstance(y, str):
        raise Invalid
    if operation == "divide" and y == 0 or operation == "exp" and x == 0 and y < 0:
        raise Invalid
    if operation == "exp":
        if x < 0 and y.denominator != 1 or abs(y) > 500:
            raise Invalid
        return x ** int(y) if y.denominator == 1 else Fraction(float(x) ** float(y))
    return {"add": x + y, "subtract": x - y, "multiply": x * y}[operation] if operation != "divide" else x / y


def table_value(operation: str, name: str, table: list[list[str]]) -> Fraction:
    rows = [cells for first, *cells in table if first == name]
    if not rows or "#" in name:
        raise Invalid
    numbers = [number(cell.replace("$", "").partition("(")[0].strip()) for cell in rows[-1]]
    if operation == "sum":
        return sum(numbers, Fraction(0))
    return {"max": max(numbers), "min": min(numbers), "average": sum(numbers) / len(numbers)}[operation]


def agrees(program: str, table: list[list[str]], eof: bool = True) -> bool:
    """The executor gives what the rules give, to the rounding of 5 places."""
    tokens = tokenize_program(program)
    execution = execute(tokens if eof else tokens[:-1], table)
    try:
        expected = value_of(program, table, eof)
    except Invalid:
        return execution.value is None
    if isinstance(expected, str) or execution.value is None:
        return execution.value == expected
    return abs(execution.value - float(expected)) <= 5.01e-6 + 1e-9 * abs(float(expected))


# ------------------------------------------------------------------------------------ perturbed programs


def parsed(program: str) -> list[list[str]]:
    steps = [piece.split("(", 1) for piece in program.removesuffix(")").split("), ")]
    return [[operation, *arguments.rsplit(", ", 1)] for operation, arguments in steps]


def written(steps: list[list[str]]) -> str:
    return ", ".join(f"{operation}({a}, {b})" for operation, a, b in steps)


def perturbed(program: str) -> dict[str, tuple[str, bool | None]]:
    """Name -> (program, whether it is the same program by the official rules; None: not known beforehand)."""
    steps = parsed(program)
    n, last, words = len(steps), steps[-1], {word for step in steps for word in step[1:]}
    # A table step after the first is known by a text that begins with "|", so it is not the same first step.
    table_only = last[0].startswith("table") and n == 1
    commuted = [[op, b, a] if op in ("add", "multiply") else [op, a, b] for op, a, b in steps]
    swapped = [*steps[:-1], [last[0], last[2], last[1]]]
    noncommutative = last[0] in ("subtract", "divide", "exp", "greater")
    hundred = f", multiply(#{n - 1}, const_100)"
    return {
        "gold": (program, True),
        "commuted": (written(commuted), True),
        "swapped": (written(swapped), last[1] == last[2] if noncommutative and n == 1 else None),
        "rescaled": (program + hundred, False),
        "scaled there and back": (
            program + hundred + f", divide(#{n}, const_100)",
            None if "const_100" in words else False,
        ),
        "plus zero": (program + f", add(#{n - 1}, 0)", None if "0" in words else False),
        "last step twice": (program + ", " + written([last]), not table_only),
        "first step last": (program + ", " + written(steps[:1]), None),
        "refers to itself": (written([*steps[:-1], [last[0], f"#{n - 1}", last[2]]]), False),
        "refers forward": (
            written([*steps[:-1], [last[0], last[1], f"#{n}"]]),
            None if last[0].startswith("table") else False,
        ),
        "refers nowhere": (written([*steps[:-1], [last[0], "#99", last[2]]]), False),
        "refers below zero": (written([*steps[:-1], [last[0], "#-1", last[2]]]), False),
        "no blanks": (program.replace(", ", ","), False),
        "constants by value": (program.replace("const_", ""), None if "const_" in program else True),
        "dollars": (re.sub(r"\((?=\d)", "($", program), None),
        "nested": (f"add({program}, 0)", False),
        "upper case": (program.upper(), False),
        "step dropped": (written(steps[:-1]), None),
    }


def golds(shared_data, split: str) -> list[tuple[str, list[list[str]], float | str]]:
    rows = json.loads((shared_data / "finqa" / "dataset" / f"{split}.json").read_text(encoding="utf-8"))
    assert len(rows) == COUNTS[split]
    return [(r["qa"]["program"], r["table"], parse_gold_value(r["qa"]["exe_ans"])) for r in rows]


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_execution_of_every_gold_and_its_perturbations_follows_the_rules(shared_data, split):
    rng, cases = random.Random(split), 0
    for program, table, gold in golds(shared_data, split):
        tables = [table]
        if len(table) > 1:  # a second row of some name, as stock tables have: the last one counts
            name, *cells = rng.choice(table[1:])
            tables.append([*table, [name, *(str(rng.randint(1, 99)) for _ in cells)]])
        for text, _ in perturbed(program).values():
            for rows in tables:
                assert agrees(text, rows), (text, rows)
                assert agrees(text, rows, eof=False), (text, rows)
                cases += 2
        assert execution_match(execute(tokenize_program(program), table), gold)
        commuted = perturbed(program)["commuted"][0]
        assert execution_match(execute(tokenize_program(commuted), table), gold)
        for name in ("refers to itself", "refers nowhere", "refers below zero", "no blanks", "nested"):
            assert execute(tokenize_program(perturbed(program)[name][0]), table).value is None
    assert cases >= 60 * COUNTS[split]


def check_program_accuracy(programs: set[str]) -> int:
    cases = 0
    for program in sorted(programs):
        gold = tokenize_program(program)
        for name, (text, same) in perturbed(program).items():
            if same is not None:
                assert program_match(tokenize_program(text), gold) is same, (name, program, text)
                cases += 1
        # Without EOF the last step is lost. x - x is 0, and so is (x - x) / y: where the step before is a
        # difference of equal arguments, the rest is the same formula by the official rules.
        steps = parsed(program)
        if len(steps) > 1 and steps[-2][0] == "subtract" and steps[-2][1] == steps[-2][2]:
            continue
        assert program_match(gold[:-1], gold) is False, program
    return cases


def test_program_accuracy_of_perturbed_golds_follows_from_the_perturbation(shared_data):
    programs = {program for program, _, _ in golds(shared_data, "test")[::12]}
    # The rarer operations are few: all of them.
    rare = {program for program, _, _ in golds(shared_data, "dev")}
    programs |= {program for program in rare if re.match(r"(table|exp|greater)", program)}
    assert check_program_accuracy(programs) > 500


@pytest.mark.slow
def test_program_accuracy_of_all_perturbed_golds(shared_data):
    """All 2,485 different ones: a sample would be a tenth of what this takes, some 15 CPU seconds."""
    programs = {program for split in COUNTS for program, _, _ in golds(shared_data, split)}
    assert len(programs) == 2485
    assert check_program_accuracy(programs) > 35_000


def test_matching_programs_with_other_values_are_recorded_and_do_not_abort(shared_data):
    """The released evaluator stops where programs are the same but values differ."""
    row = Record(
        "r", "finqa", "", "", "", "4.0", target_program="table_sum(a, none)", table=[["a", "1", "2"]]
    )
    graded = task_of("finqa").grade_program(row, tokenize_program("table_sum(a, none)"))
    assert (graded.correct, graded.official["program_match"]) == (False, True)
    assert graded.official["program_match_only"] is True


# ---------------------------------------------------------------------------------------- made-up programs

NAMES = st.sampled_from(["a", "b", "c d", "2019", "none"])
WORDS = st.one_of(
    st.integers(-30, 30).map(str),
    st.sampled_from(
        ["5%", "const_100", "const_m1", "1,000", "#0", "#1", "#2", "#-1", "#x", "$3", "none", "n/a"]
    ),
)
STEPS = st.one_of(
    st.tuples(st.sampled_from(OPERATIONS[:6]), WORDS, WORDS),
    st.tuples(st.sampled_from(OPERATIONS[6:]), NAMES, st.just("none")),
    st.tuples(st.sampled_from(["modulo", "Add", "table"]), WORDS, WORDS),
)
CELLS = st.sampled_from(["1", "-2.5", "$ 3", "-80 ( 80 )", "5%", "( 5 )", "-", "nm", "1,200", ""])


@pytest.mark.slow
@settings(max_examples=500)
@given(
    st.lists(STEPS, min_size=1, max_size=4).map(written),
    st.lists(st.tuples(NAMES, CELLS, CELLS).map(list), min_size=1, max_size=5),
    st.booleans(),
)
def test_made_up_programs_follow_the_rules(program, table, eof):
    assert agrees(program, table, eof)
