"""Reasoning quality: identical text is perfect, "2 + 2 = 5" is not, and what each measure cannot see."""

import json
import random
import re
from collections import Counter
from itertools import combinations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from utils.data.records import Record
from utils.data.settings import DatasetConfig
from utils.data.sources import gold_records
from utils.evaluation.metrics import compute_metrics
from utils.grading.graded_item import breakdown_row, grade_items, prediction_row
from utils.grading.outside_predictions import Prediction
from utils.grading.program import tokenize_program
from utils.grading.reasoning_quality import (
    stated_results,
    step_coverage,
    step_order,
)
from utils.grading.tasks import task_of
from utils.statistics.accuracy_tests import rate

TABLE = [["", "2019", "2018"], ["sales", "120", "100"], ["cost", "80", "64"]]
REPORT = "sales 120 100\ncost 80 64\nquestion: by how much did sales grow ?"
GOLD = "subtract(120, 100), divide(#0, 100)"
SOLUTION = "48 / 2 = 24 clips in May.\nTogether 48 + 24 = 72.\n#### 72"


def finqa(program=GOLD, answer="0.2"):
    return Record("t", "finqa", "q?", REPORT, "target", answer, target_program=program, table=TABLE)


def gsm8k(solution=SOLUTION, answer="72"):
    return Record("t", "gsm8k", "q?", "input", solution, answer)


def math(solution=r"$48 / 2 = 24$ and $48 + 24 = \boxed{72}$.", answer="72"):
    return Record("t", "math", "q?", "input", solution, answer)


def quality(record, response):
    predictions = {} if response is None else {record.id: Prediction(response=response)}
    (item,) = grade_items([record], predictions)
    return tuple(item.reasoning[name] for name in task_of(record.dataset).reasoning_measures)


def program(text, answer="0.2"):
    return json.dumps({"program": text, "answer": answer})


# -------------------------------------------------------------------------------------------------- steps


@pytest.mark.parametrize(
    ("text", "coverage", "order"),
    [
        (GOLD, 1.0, 1.0),
        ("subtract(120, 100), divide(#0, const_100)", 1.0, 1.0),
        ("subtract(120, 100)", 0.5, 0.5),
        ("subtract(100, 120), divide(#0, 100)", 0.5, 0.5),
        ("subtract(120, 100), divide(#0, 120)", 0.5, 0.5),
        ("subtract(120, 64), divide(#0, 100)", 0.5, 0.5),  # a slip does not spoil what builds on it
        ("divide(#1, 100), subtract(120, 100)", 0.5, 0.5),  # a reference to nothing
        ("add(120, 100), divide(#0, 100)", 0.0, 0.0),  # the result of another operation is divided
        ("subtract(120, 100), subtract(120, 100)", 0.5, 0.5),  # a step counts as often as the gold has it
        ("subtract(80, 64), subtract(120, 100), divide(#1, 100)", 1.0, 1.0),  # extra steps cost nothing
        ("", 0.0, 0.0),
    ],
)
def test_steps_of_a_program(text, coverage, order):
    assert quality(finqa(), program(text))[:2] == (coverage, order)
    tokens = Prediction(program_tokens=tuple(tokenize_program(text)))
    (item,) = grade_items([finqa()], {"t": tokens})
    assert (item.reasoning["step_coverage"], item.reasoning["step_order"]) == (coverage, order)


def test_independent_steps_may_be_reordered_for_coverage_and_not_for_order():
    gold = finqa("add(1, 2), subtract(5, 3), divide(#0, #1)", "1.5")
    assert quality(gold, program("subtract(5, 3), add(2, 1), divide(#1, #0)"))[:2] == (1.0, 2 / 3)
    assert quality(gold, program("subtract(5, 3), add(2, 1), divide(#0, #1)"))[:2] == (2 / 3, 1 / 3)


@pytest.mark.parametrize(
    ("text", "coverage", "order"),
    [
        (SOLUTION, 1.0, 1.0),
        ("Together 24 + 48 = 72 and 48/2=24 \n#### 72", 1.0, 0.5),
        (r"\(48 \div 2 = 24\), \(48 + 24 = 72\)", 1.0, 1.0),
        ("48 / 2 = 25, 48 + 25 = 73\n#### 73", 0.5, 0.5),  # what is done counts, not what comes out
        ("2 / 48 = 0.04, 48 - 24 = 24", 0.0, 0.0),
        ("half of 48 is 24, and the sum 72\n#### 72", 0.0, 0.0),  # not read: words
        ("", 0.0, 0.0),
    ],
)
def test_steps_of_a_solution_in_words(text, coverage, order):
    assert quality(gsm8k(), text)[:2] == (coverage, order)


def test_without_steps_in_the_gold_nothing_is_said_of_them():
    assert quality(gsm8k("He has 72.\n#### 72"), SOLUTION)[:2] == (None, None)
    assert quality(math(r"$x^2 = y$, so \boxed{x}", "x"), r"$2 + 2 = 4$ \boxed{x}")[:2] == (None, None)


def test_a_missing_answer_has_no_steps_and_nothing_else():
    assert quality(gsm8k(), None) == (0.0, 0.0, None, None)
    assert quality(finqa(), None) == (0.0, 0.0, None, None)


words = st.lists(st.sampled_from("abcd"), max_size=7)


@given(words, words)
def test_coverage_and_order_are_their_definitions(own, gold):
    coverage, order = step_coverage(own, gold), step_order(own, gold)
    if not gold:
        assert coverage is None and order is None
        return
    remaining, matched = list(own), 0
    for step in gold:
        if step in remaining:
            remaining.remove(step)
            matched += 1
    assert coverage == matched / len(gold)

    def has(sequence) -> bool:
        rest = iter(own)
        return all(step in rest for step in sequence)

    longest = max(n for n in range(len(gold) + 1) if any(has(part) for part in combinations(gold, n)))
    assert order == longest / len(gold)
    assert order <= coverage and step_coverage(gold, gold) == step_order(gold, gold) == 1.0


# ---------------------------------------------------------------------------------------------- arithmetic


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("2 + 2 = 5\n#### 5", 0.0),
        ("2 + 2 = 4\n#### 4", 1.0),
        ("2 + 2 = 4, 4 * 3 = 13, 13 - 1 = 12", 2 / 3),
        ("10 / 3 = 3.33, 10 / 3 = 3", 0.5),  # rounded to stated decimals; a whole number states itself
        ("it is 5 because I say so\n#### 5", None),
        ("x + 2 = 5, 5 = 5", None),  # unknowns are not read, and no calculation is none
    ],
)
def test_stated_equations_are_computed_again(text, share):
    assert quality(gsm8k(), text)[2] == share
    assert quality(math(), text.replace("#### 5", r"\boxed{5}"))[2] == share


@pytest.mark.parametrize(
    ("text", "share"), [(GOLD, 1.0), ("subtract(120, 101), divide(#0, 100)", 2 / 3), ("add(7, 9)", 0.0)]
)
def test_operands_must_be_in_the_report(text, share):
    assert quality(finqa(), program(text))[2] == pytest.approx(share)


# --------------------------------------------------------------------------------------------------- support


@pytest.mark.parametrize(
    ("text", "supported"),
    [
        (SOLUTION, 1.0),
        ("24 apples + 48 apples = 72 apples\n#### 72", 1.0),
        ("so she pays 24 + 48 = $72.00 per year\n#### 72", 1.0),
        ("24 + 48 = 72, twice that is 2 * 72 = 144\n#### 72", 1.0),  # among the last three
        ("24 + 48 = 72, 1 + 1 = 2, 2 + 1 = 3, 3 + 1 = 4\n#### 72", 0.0),
        ("24 + 48 = 72\n#### 73", 0.0),
        ("24 + 48 = 73\n#### 73", 0.0),  # it is stated, but false
        ("24 + 48 = 72.\n#### 72.", 1.0),
        ("24 + 48 = 70 + 2\n#### 70", 0.0),  # 70 is no result
        ("#### 72", 0.0),
        ("24 + 48 = 72", None),  # no final answer
        ("24 + 48 = 72\n#### $72", None),  # none where it must stand
    ],
)
def test_a_gsm8k_answer_must_be_a_result(text, supported):
    assert quality(gsm8k(), text)[3] == supported


@pytest.mark.parametrize(
    ("text", "supported"),
    [
        (r"$48 + 24 = \boxed{72}$", 1.0),
        (r"$x = 36 \cdot 2 = 72$, so \boxed{72}", 1.0),
        (r"$x = 71$, so \boxed{72}", 0.0),
        (r"By symmetry it is \boxed{72}", None),  # no equation is stated
        (r"$x = 72$, so \boxed{\frac{72}{1}}", None),  # no plain number
        (r"$x = 4, y = 6$, so \boxed{4,6}", None),  # a list
        ("$x = 72$", None),
    ],
)
def test_a_math_answer_must_be_a_result(text, supported):
    assert quality(math(), text)[3] == supported


@pytest.mark.parametrize(
    ("text", "answer", "supported"),
    [
        (GOLD, "0.2", 1.0),
        (GOLD, "20%", 1.0),
        (GOLD, "20.0 %", 1.0),
        (GOLD, "0.20000", 1.0),
        (GOLD, "0.3", 0.0),
        (GOLD, "20", 0.0),
        (GOLD, "about a fifth", 0.0),
        ("divide(2, 3)", "0.67", 1.0),
        ("divide(2, 3)", "0.66", 1.0),
        ("divide(2, 3)", "66.7%", 1.0),
        ("divide(2, 3)", "0.65", 0.0),
        ("divide(7, 2)", "3", 0.0),
        ("greater(2, 1)", "Yes", 1.0),
        ("greater(2, 1)", "no", 0.0),
        ("greater(2, 1)", "1", 0.0),
        ("divide(1, 0)", "0.2", None),
        (GOLD, "", None),
    ],
)
def test_a_stated_answer_must_be_the_programs_value(text, answer, supported):
    assert quality(finqa(), program(text, answer))[3] == supported


# ----------------------------------------------------------------------------------------- files and metrics


def test_every_file_has_the_measures():
    records = [gsm8k(), Record("u", "gsm8k", "q?", "input", SOLUTION, "72"), gsm8k("none", "5")]
    records = [Record(**{**r.to_json(), "id": f"t-{i}"}) for i, r in enumerate(records)]
    texts = {"t-0": SOLUTION, "t-1": "48 / 2 = 25\n#### 25"}
    items = grade_items(records, {key: Prediction(response=text) for key, text in texts.items()})
    metrics = compute_metrics(items, "x", "test")["reasoning"]
    assert {name: (value["value"], value["n"]) for name, value in metrics.items()} == {
        "step_coverage": (0.75, 2),
        "step_order": (0.75, 2),
        "arithmetic_consistency": (0.5, 2),
        "answer_support": (0.5, 2),
    }
    assert metrics["answer_support"]["ci95"] == pytest.approx(rate(1, 2)["ci95"])
    for item in items:
        assert list(breakdown_row(item))[-4:] == list(task_of("gsm8k").reasoning_measures)
    assert [breakdown_row(item)["step_coverage"] for item in items] == [1.0, 0.5, ""]
    assert prediction_row(items[2])["reasoning"] == dict.fromkeys(task_of("gsm8k").reasoning_measures)


def test_a_measure_that_applies_to_nothing_is_absent():
    (item,) = grade_items([gsm8k("none", "5")], {"t": Prediction(response="I do not know")})
    assert compute_metrics([item], "x", "test")["reasoning"] == {}


pieces = st.sampled_from([*"0123456789.,+-*/=#$%{}\\ \nx", "#### ", "\\boxed{", " = ", "48 / 2 = 24"])


@settings(max_examples=200)
@given(st.sampled_from([finqa(), gsm8k(), math()]), st.lists(pieces, max_size=50).map("".join))
@example(gsm8k(), "=" * 30_000)
@example(gsm8k(), "= " + "1" * 30_000)
@example(gsm8k(), "=1,111" * 5_000 + "\n#### 1,111")
@example(gsm8k(), "=" + " " * 30_000 + "1")
@example(math(), "\\boxed{" * 5_000)
@example(finqa(), program("add(#99999999999999, #²)"))
@example(finqa(), program("add(1, 2)", "9" * 5_000))
def test_whatever_an_answer_holds_measures_are_shares(record, text):
    for response in (text, program(text)):
        assert all(value is None or 0 <= value <= 1 for value in quality(record, response))


def test_results_are_what_equations_end_in():
    text = (
        r"2 + 3 = 5, x = 4 + 5 = 9; y = $1,234.50, 600 * 12 = $7200/year, p = 12/20, w = \boxed{8}, z = 1,2"
    )
    assert stated_results(text) == [5.0, 9.0, 1234.5, 7200.0, 8.0]


# ------------------------------------------------------------------------------------------------- real data


@pytest.fixture(scope="module")
def golds(shared_data):
    records = gold_records(DatasetConfig(dataset="gsm8k", data_root=str(shared_data / "gsm8k")), "test")
    return records, {r.id: Prediction(response=r.target_text) for r in records}


def values(items, name):
    return [item.reasoning[name] for item in items if item.reasoning[name] is not None]


def test_gold_solutions_of_gsm8k(golds):
    items = grade_items(*golds)
    assert set(values(items, "step_coverage")) == set(values(items, "step_order")) == {1.0}
    assert len(values(items, "step_coverage")) > 1100
    arithmetic, support = values(items, "arithmetic_consistency"), values(items, "answer_support")
    assert len(support) == len(items)
    assert sum(arithmetic) / len(arithmetic) > 0.998 and sum(support) / len(support) > 0.98


def test_solutions_of_other_problems_and_changed_numbers_are_told_apart(golds):
    records, predictions = golds[0][:300], {r.id: golds[1][r.id] for r in golds[0][:300]}
    texts = [predictions[record.id].response for record in records]
    other = dict(zip(predictions, [Prediction(response=t) for t in texts[1:] + texts[:1]], strict=True))
    coverage = values(grade_items(records, other), "step_coverage")
    assert sum(coverage) / len(coverage) < 0.02
    rng = random.Random(0)
    changed = [re.sub(r"#### (\S+)", lambda m: f"#### {m[1]}{rng.randint(1, 9)}", text) for text in texts]
    wrong = dict(zip(predictions, [Prediction(response=t) for t in changed], strict=True))
    items = grade_items(records, wrong)
    support = values(items, "answer_support")
    assert sum(support) / len(support) < 0.02
    assert Counter(values(items, "step_coverage")) == Counter({1.0: len(coverage)})
