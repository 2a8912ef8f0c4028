"""Failure reasons: one per item, from hand-made slips and in the documented order."""

import ast
import inspect
import re
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

import utils.grading.failure_reasons as failures
from utils.data.records import Record
from utils.frame.files import REPO_ROOT
from utils.grading import graded_item
from utils.grading.failure_reasons import is_scale_slip
from utils.grading.graded_item import grade_items
from utils.grading.outside_predictions import Prediction
from utils.grading.program import tokenize_program
from utils.grading.task import Task
from utils.grading.tasks.finqa import FinqaTask, program_failure

TABLE = [["", "2019", "2018"], ["sales", "120", "100"], ["cost", "80", "64"], ["debt", "n/a", "5"]]


def finqa(program="subtract(120, 100), divide(#0, 100)", answer="0.2", dataset="sample"):
    return Record("t-0", dataset, "q?", "input", "target", answer, target_program=program, table=TABLE)


def gsm8k(answer="1200"):
    return Record("t-0", "gsm8k", "q?", "input", "target", answer)


def math(answer="12"):
    return Record("t-0", "math", "q?", "input", "target", answer)


def reason(record, response, truncated=False):
    prediction = None if response is None else Prediction(response=response, truncated=truncated)
    (item,) = grade_items([record], {} if prediction is None else {record.id: prediction})
    return (item.reason, item.detail)


def program(text):
    return f'{{"program": "{text}"}}'


GROWTH = {
    "subtract(120, 100), divide(#0, 100)": "",
    "subtract(120.01, 100.002), divide(#0, 100)": "rounding",
    "subtract(120, 100), divide(#0, 1)": "scale_or_percent",
    "subtract(120, 100), divide(#0, 100), multiply(#1, const_100)": "scale_or_percent",
    "subtract(100, 120), divide(#0, 100)": "operand_order",
    "subtract(120, 100), divide(100, #0)": "operand_order",
    "subtract(120, 100), divide(#0, 120)": "wrong_operand",
    "subtract(80, 64), divide(#0, 64)": "wrong_operand",
    "add(120, 100), divide(#0, 100)": "wrong_operation",
    "subtract(120, 100), multiply(#0, 100)": "wrong_operation",
    "divide(120, 100)": "missing_step",
    "subtract(80, 64), divide(120, 100)": "missing_step",  # the first step is never used
    "subtract(120, 100), divide(#0, 100), divide(#1, 7)": "extra_step",
    "add(80, 64), multiply(#0, 7)": "other_program",
    "greater(120, 100)": "other_program",
}


@pytest.mark.parametrize("text,expected", GROWTH.items())
def test_slips_in_a_growth_rate(text, expected):
    assert reason(finqa(), program(text)) == (expected, "")


@pytest.mark.parametrize("text,expected", GROWTH.items())
def test_the_official_token_form_gives_the_same_reasons(text, expected):
    prediction = Prediction(program_tokens=tuple(tokenize_program(text)))
    (item,) = grade_items([finqa(dataset="finqa")], {"t-0": prediction})
    assert item.reason == expected


def test_order_of_independent_steps_and_spelling_of_numbers_do_not_matter():
    gold = finqa("add(1000, 50), add(100, 7), divide(#0, #1)", "9.81308")
    swapped = "add(100, 7), add(1,000, 5), divide(#1, #0)"  # a comma without blank stays inside the number
    assert reason(gold, program(swapped)) == ("wrong_operand", "")
    assert reason(gold, program("add(100, 7), add(1,000, 50), divide(#0, #1)")) == ("operand_order", "")
    assert reason(finqa("divide(5%, 2)", "0.025"), program("divide(2, 0.05)")) == ("operand_order", "")


def test_yes_no_golds():
    gold = finqa("greater(120, 100)", "yes")
    assert reason(gold, program("greater(120, 100)")) == ("", "")
    assert reason(gold, program("greater(100, 120)")) == ("operand_order", "")
    assert reason(gold, program("greater(64, 100)")) == ("wrong_operand", "")
    assert reason(gold, program("subtract(120, 100)")) == ("wrong_operation", "")


def test_a_gold_program_that_misses_its_answer_is_the_datas_fault():
    assert (
        reason(finqa(answer="0.25"), program("subtract(120, 100), divide(#0, 100)"))[0] == "gold_inconsistent"
    )


@pytest.mark.parametrize(
    "response,truncated,expected",
    [
        (None, False, ("missing_prediction", "")),
        (" \n", False, ("empty_response", "")),
        ("", True, ("empty_response", "")),
        ('{"program": "subtract(120, 10', True, ("cut_off", "")),
        ('{"program": "subtract(120, 10', False, ("invalid_json", "not_json")),
        ("the answer is 0.2", False, ("invalid_json", "not_json")),
        ('[{"program": "add(1, 2)"}]', False, ("invalid_json", "not_json")),
        ('{"answer": "0.2"}', False, ("missing_program", "missing_field:program")),
        ('{"program": 3}', False, ("missing_program", "missing_field:program")),
        (program("modulo(1, 2)"), False, ("invalid_program", "unknown_operation")),
        (program("divide(1, 0)"), False, ("invalid_program", "division_by_zero")),
        (program("divide(#1, 2)"), False, ("invalid_program", "bad_reference")),
        (program("table_sum(debt, none)"), False, ("invalid_program", "bad_table_cell")),
        (program("table_sum(assets, none)"), False, ("invalid_program", "bad_table_row")),
        (program("exp(9, 999999)"), False, ("invalid_program", "overflow")),
        (program("add(1, two)"), False, ("invalid_program", "bad_number")),
        (program("subtract(120, 100), divide(#0, 100)"), True, ("", "")),  # right, though it did not stop
    ],
)
def test_programs_without_a_value(response, truncated, expected):
    assert reason(finqa(), response, truncated) == expected


@pytest.mark.parametrize(
    "response,truncated,expected",
    [
        ("so 1200\n#### 1,200", False, ""),
        ("#### 1200.", False, "answer_format"),
        ("so it is 1200 dollars", False, "answer_format"),
        ("I do not know", False, "no_answer"),
        ("first 3, then", True, "cut_off"),
        ("#### 1199.6", False, "rounding"),
        ("#### 1201", False, "wrong_answer"),
        ("#### 12", False, "scale_or_percent"),
        ("#### 1200000", False, "scale_or_percent"),
        ("#### 120", False, "wrong_answer"),
        ("", False, "empty_response"),
        (None, False, "missing_prediction"),
    ],
)
def test_gsm8k(response, truncated, expected):
    assert reason(gsm8k(), response, truncated)[0] == expected


@pytest.mark.parametrize(
    "gold,response,truncated,expected",
    [
        ("12", r"so \boxed{12}", False, ""),
        ("12", "so 12", False, "no_answer"),
        ("12", r"so \boxed{12", True, "cut_off"),
        ("12", r"\boxed{}", False, "no_answer"),
        ("0.333", r"\boxed{0.334}", False, "rounding"),
        ("12", r"\boxed{1200}", False, "scale_or_percent"),
        ("12", r"\boxed{13}", False, "wrong_answer"),
        (r"\frac{1}{2}", r"\boxed{\frac{1}{3}}", False, "wrong_answer"),
        ("12", r"\boxed{" + "x" * 2000 + "}", False, "unreadable_answer"),
    ],
)
def test_math(gold, response, truncated, expected):
    assert reason(math(gold), response, truncated)[0] == expected


SOLUTION = "48 / 2 = 24 clips in May.\nTogether 48 + 24 = 72, and 72 * 2 = 144.\n#### 144"
BOXED = SOLUTION.replace("#### 144", r"\boxed{144}")


@pytest.mark.parametrize(
    "working,expected",
    [
        ("48 / 2 = 26, 48 + 26 = 74\n{74}", "wrong_arithmetic"),
        ("2 + 2 = 5\n{74}", "wrong_arithmetic"),
        ("48 / 2 = 24, so 24 + 48 = 72\n{72}", "missing_step"),  # commuted, and in another order
        ("48 + 24 = 72, 48 / 2 = 24\n{24}", "missing_step"),
        ("48 / 2 = 24, 24 / 2 = 12\n{12}", "wrong_answer"),
        ("48 / 2 = 24, 48 + 24 = 72, 72 * 2 = 144\n{145}", "wrong_answer"),  # every step, another answer
        ("48 halves make 24\n{24}", "wrong_answer"),
        ("48 / 2 = 26\n{14400}", "scale_or_percent"),  # the answer's own slip comes first
        ("48 / 2 = 26\n{144}", ""),
    ],
)
def test_the_working_of_a_wrong_answer(working, expected):
    marked = Record("t-0", "gsm8k", "q?", "input", SOLUTION, "144")
    assert reason(marked, re.sub(r"\{(.*)\}", r"#### \1", working)) == (expected, "")
    boxed = Record("t-0", "math", "q?", "input", BOXED, "144")
    assert reason(boxed, re.sub(r"\{(.*)\}", r"\\boxed{\1}", working)) == (expected, "")


@pytest.mark.parametrize("answer", ["1,2", "(1,2)", "1, 2"])
def test_a_list_is_no_number(answer):
    assert reason(math("12"), rf"\boxed{{{answer}}}") == ("wrong_answer", "")
    assert reason(math("1,200"), r"\boxed{12}") == ("scale_or_percent", "")


@given(st.floats(-1e6, 1e6).filter(lambda x: abs(x) > 1e-3), st.sampled_from([2, 3, 6, 9, -2, -3, -6, -9]))
def test_scale_slips_go_both_ways_and_keep_the_sign(gold, power):
    value = gold * 10.0**power
    assert is_scale_slip(value, gold) and is_scale_slip(gold, value)
    assert not is_scale_slip(-value, gold) and not is_scale_slip(gold, gold)
    assert not is_scale_slip(value * 1.01, gold)


def test_the_documented_reasons_are_those_that_the_code_gives():
    text = (REPO_ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    table = text.partition("## Failure reasons")[2].partition("Programs are compared")[0]
    documented = set(re.findall(r"\| `(\w+)`", table))
    giving = (failures, graded_item._reason, Task.reason, FinqaTask.reason, program_failure)
    sources = [textwrap.dedent(inspect.getsource(each)) for each in giving]
    returns = [node for node in ast.walk(ast.parse("\n".join(sources))) if isinstance(node, ast.Return)]
    strings = {
        inner.value
        for node in returns
        for inner in ast.walk(node)
        if isinstance(inner, ast.Constant) and isinstance(inner.value, str)
    }
    assert {text for text in strings if re.fullmatch(r"[a-z]+_[a-z_]+|rounding", text)} == documented
