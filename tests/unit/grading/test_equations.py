"""The reasoning score: operands grounded in the report, equations computed again, hostile completions."""

import json
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from utils.data.records import Record
from utils.data.settings import DatasetConfig
from utils.data.sources import gold_records
from utils.frame.files import read_jsonl
from utils.grading.equations import MAX_EQUATIONS, MAX_SIDE, equations
from utils.grading.tasks import task_of
from utils.grading.tasks.finqa import grounded_operands

REPORT = (
    "revenue rose to $ 1,234.5 in 2001 , up 5.3% from 1172 .\n"
    "net cash 2000 ( 97 ) 2001 63\nquestion: what was the change ?"
)
FINQA = Record(
    id="f",
    dataset="finqa",
    question="",
    input_text=REPORT,
    target_text="{}",
    target_answer="1",
    target_program="add(97, 63)",
)
GSM8K = Record("g", "gsm8k", "", "", "#### 18", "18")


def reasoning_score(record: Record, completion: str) -> float:
    return task_of(record.dataset).reasoning_score(record, completion)


def program(text: str) -> str:
    return json.dumps({"program": text, "answer": "1"})


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("subtract(63, 97)", 1.0),
        ("subtract(63, 98)", 0.5),
        ("subtract(64, 98)", 0.0),
        ("add(1,234.5, 1172)", 1.0),
        ("add(1234.5, 1172)", 1.0),
        ("add(-97, 63.0)", 1.0),  # "( 97 )" is a loss
        ("multiply(5.3%, 1172)", 1.0),
        ("multiply(5.3, 1172)", 1.0),
        ("multiply(0.053, 1172)", 0.5),  # not as written
        ("subtract(63, 97), divide(#0, 97)", 1.0),
        ("subtract(63, 98), divide(#0, 97)", 2 / 3),
        ("subtract(63, 98), add(#0, #0), add(#1, #1)", 0.5),  # later steps do not dilute an invention
        ("subtract(63, #0)", 0.5),  # the step itself
        ("add(63, 97), divide(#1, const_2)", 2 / 3),
        ("add(63, 97), divide(#0, const_2)", 1.0),
        ("add(63, const_17)", 0.5),
        ("multiply(63, const_m1)", 1.0),
        ("add(const_1, const_2)", 0.0),  # nothing from the report
        ("table_sum(net cash, none)", 1.0),
        ("table_sum(net, none)", 1.0),
        ("table_sum(net ca, none)", 0.0),
        ("table_sum(gross cash, none)", 0.0),
        ("add(nan, inf)", 0.0),
        ("add(1e3, 0x3f)", 0.0),
        ("add(٦٣, ⁶³)", 0.0),
        ("add(63, 97", 0.0),
        ("", 0.0),
        ("63", 0.0),
        ("N/A", 0.0),
    ],
)
def test_operands_that_the_report_holds(text, score):
    assert grounded_operands(REPORT, program(text)) == pytest.approx(score)
    assert reasoning_score(FINQA, program(text)) == pytest.approx(score)


def test_a_completion_without_a_program_scores_nothing():
    for text in (
        "",
        "63",
        '{"answer": "63"}',
        '{"program": 63}',
        '{"program": "add(63, 97)"} done',
        "[" * 9999,
    ):
        assert reasoning_score(FINQA, text) == 0


def test_a_gold_is_not_needed():
    blank = replace(FINQA, target_answer="", target_program="", target_text="")
    assert reasoning_score(blank, program("subtract(63, 97)")) == 1


@pytest.mark.parametrize(
    ("text", "verdicts"),
    [
        ("2 + 2 = 4", [True]),
        ("2+2=5", [False]),
        ("She has 48/2 = 24 clips, so 24 + 48 = 73.", [True, False]),
        ("48/2 = <<48/2=24>>24", [True]),
        ("16 - 3 - 4 = 9", [True]),
        ("16 - (3 - 4) = 17", [True]),
        ("2 + 3 * 4 = 14; 2 + 3 * 4 = 20", [True, False]),
        ("2 * 3^2 = 18, -2^2 + 8 = 4, 2^3^2 - 0 = 512, 2^-1 * 4 = 2", [True] * 4),
        ("12 / 4 / 3 = 1, 12 - 4 + 3 = 11", [True, True]),
        ("$5 x 3 = $15 and 3×$5 = $15 and 10 ÷ 4 = 2.5", [True, True, True]),
        ("1,000 + 1,500 = 2,500", [True]),
        ("20% * 50 = 10", [True]),
        ("5/20 = 25%, (5/20)*100 = 25%, 5/20 = 26%", [True, True, False]),
        ("10/3 = 3.33, 10/3 = 3.3, 2/3 = 0.66, 2/3 = 0.67, 2/3 = 0.7", [True] * 5),
        ("10/3 = 3, 7/2 = 3, 10/3 = 3.35, 2/3 = 0.5", [False] * 4),
        ("5 * 2 = 10 * 3 = 30", [False, True]),  # a run-on states that 10 is 30
        ("2 * 3 = 1 + 5 = 6", [True, True]),
        ("(5 + 3 = 8) and (so 2 * (3 + 4 = 7)", [True, True]),
        ("3 - 5 = -2, so -3 + 5 = 2", [True]),  # after a word, a minus may be a dash
        ("-3 + 5 = 2", [True]),
        (r"$2 \times 3 = 6$, $\frac{1}{2} + \frac{1}{4} = \frac{3}{4}$, $2^{10} - 24 = 1000$", [True] * 3),
        (r"\boxed{2 + 3 = 5}", [True]),
        ("1 + 2 +\n3 = 6", [True]),
        ("2(3 + 4) = 14, (2)(3) = 6, (3/4) (1/3) = 1/4", [True, True, True]),
        (r"\(2 + 3 = 5\) \[2 + 3 = 5\] 2 + 3 = 5\text{ cm} 2 + 3 = 5 \quad", [True] * 4),
        ("= 5 + 3 = 8", [True]),
        ("$10 000 x 2/100 = <<10000*2/100=200>>200 and 1 1/2 + 1 = <<1.5+1=2.5>>2.5", [True, True]),
        ("7 + 5 = 12 (rounded)", [True]),
        # Not equations between numbers, or not surely all of one:
        ("x = 5, 2x = 10, 3x + 2 = 5, x - 3 = 2, y2 + 3 = 5", []),
        ("f(2 + 3) = 1, f (2 + 3) = 1, 5! + 1 = 2, 5! = 120", []),
        ("half of 20 + 2 = 12, 5 times 3 + 1 = 16, 2 apples + 3 = 5", []),
        ("5 = 5, -5 = -5, 20% = 0.2, 5 + 3 = x, 5 + 3 = 8x, 2 + 3 = 5!", []),
        ("2 1/2 + 1 = 3.5, 3 = 2 1/2 + 1/2, 7 / 2 = 3 1/2, 10 000 + 1 = 10001, 1 + 9999 = 10 000", []),
        (r"14\frac{1}{2} + 1 = 15.5, \sqrt{4} + 1 = 3, 29 / 2 = 14\frac{1}{2}", []),
        (
            r"\frac 12 * 4 = 2, 2 \pi (5) * 2 = 20 \pi, 5 + 1 = 6 \pi, 1/3 + 0 = 0.333\ldots, 74/7 = 10 R 4",
            [],
        ),
        ("2 * 8 = 2 (3 + 5)", []),
        ("2 + 2 == 5, 2 + 2 != 5, 2 + 2 >= 5, 2 + 2 := 5, 2 + 2 ≈ 5", []),
        ("5 / 0 = 1, (-8)^0.5 + 1 = 2, 9^9^9 = 1, 9^9^9 + 1 = 9^9^9", []),
        ("1 + = 2, + 1 = 2, 1 + 1 =, (1 + 1 = , 1 + 1) = 2, 10 % 3 = 1, 1 ++ 1 = 2", []),
        ("10:30 - 9:00 = 1:30, 1:2 * 3 = 6", []),
        ("", []),
    ],
)
def test_stated_equations_are_computed_again(text, verdicts):
    assert equations(text) == verdicts
    score = sum(verdicts) / len(verdicts) if verdicts else 0.0
    assert reasoning_score(GSM8K, text) == pytest.approx(score)


def test_only_so_many_equations_are_read():
    assert equations("2+2=5 " * (MAX_EQUATIONS - 1) + "2+2=4 2+2=5") == [False] * (MAX_EQUATIONS - 1) + [True]
    assert equations(" " * 20_000 + "2+2=4") == []
    assert equations("1+" * 200 + "1=201") == []  # a side that is too long is not read in part
    assert equations("201+0=" + "1+" * 200 + "1") == []
    for digits in range(1, 5):  # wherever the part that would fit begins and ends
        long = f"{'1' * digits}{' + 1' * 40} + {'1' * digits}"
        assert equations(f"so {long} = 1") == equations(f"so 1 + 0 = {long}") == []
    assert equations("2+2=5 2+2=4") == [False, True]


pieces = st.sampled_from([*"0123456789.,+-*/^()%=xX$#{}\\ \n:~!<>", "**", "1e9", "\\frac{1}{2}", "99", "f "])


@settings(max_examples=300)
@given(st.sampled_from([FINQA, GSM8K]), st.text(max_size=80) | st.lists(pieces, max_size=60).map("".join))
@example(GSM8K, "(" * 100 + "1" + ")" * 100 + " + 1 = 2")
@example(GSM8K, "9" * 110 + "^9 = 1")
@example(GSM8K, "9^" * 50 + "9 = 1")
@example(GSM8K, "5" + " " * 19_000 + "x")
@example(GSM8K, "=" * 20_000)
@example(GSM8K, "1+1=2 " * 3_000)
@example(GSM8K, "0" * 20_000 + "=0")
@example(FINQA, program("add(" + "9" * 300 + ", 1)"))
@example(FINQA, program("add(#99999999999, #²)"))
def test_whatever_a_completion_holds_it_has_a_score(record, text):
    for completion in (text, program(text)):
        assert 0 <= reasoning_score(record, completion) <= 1


number = st.integers(0, 50)
calculation = st.recursive(
    number.map(str),
    lambda inner: st.tuples(inner, st.sampled_from("+-*"), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
    max_leaves=6,
)


@given(
    st.lists(st.tuples(calculation, st.sampled_from("+-*")), min_size=1, max_size=4), number, st.booleans()
)
@example([("1", "+")] * 40, 111, True)  # longer than what is read
def test_calculations_have_the_value_that_python_gives_them(parts, last, right):
    text = "".join(f"{part} {operation} " for part, operation in parts) + str(last)
    value = eval(text)  # digits, brackets and + - * made above
    wrong = value + max(1, abs(value) // 10**8)  # values count as equal to a billionth
    verdicts = [right] if len(text) < MAX_SIDE else []  # what is longer is not read, and not in part
    assert equations(f"so {text} = {value if right else wrong}") == verdicts


@pytest.mark.parametrize("length", range(105, MAX_SIDE))
def test_a_long_calculation_is_read_whatever_word_precedes_it(length):
    """The longest that is read has its words cut off, and half a word may look like a function."""
    tens = " + 10" * ((length - 8) // 5)
    text = f"({'1' * (1 + (length - 8) % 5)} + 10){tens}"
    value = eval(text)  # numbers, a bracket and + made above
    for word in ("so", "thus so", "We see that"):
        assert equations(f"{word} {text} = {value}") == [True]
    assert equations(f"f {text} = {value}") == []


@pytest.mark.parametrize(("stated", "right"), [(10**9, True), (10**9 + 2, False)])
def test_large_values_are_equal_to_a_billionth(stated, right):
    assert equations(f"so 1000 * 1000 * 1000 = {stated}") == [right]


# ---------------------------------------------------------------------------------------------- real data


def test_gold_solutions_of_gsm8k_are_true_and_changed_ones_are_not(shared_data: Path):
    rows = read_jsonl(shared_data / "gsm8k" / "test.jsonl")
    texts = [re.sub(r"<<[^>]*>>", "", row["answer"]) for row in rows]
    verdicts = [equations(text) for text in texts]
    stated = [verdict for row in verdicts for verdict in row]
    assert len(stated) > 3000 and sum(stated) / len(stated) > 0.998
    rng = random.Random(0)
    changed = [
        re.sub(r"=([ $]*)([0-9]+)", lambda m: f"={m[1]}{int(m[2]) + rng.randint(1, 9)}", text)
        for text in texts
    ]
    false = [all(equations(text)) for text, row in zip(changed, verdicts, strict=True) if row]
    assert sum(false) / len(false) < 0.05


def test_gold_programs_of_finqa_are_grounded_in_their_report_and_in_no_other(shared_data: Path):
    config = DatasetConfig(dataset="finqa", table_style="rows", data_root=str(shared_data / "finqa"))
    records = gold_records(config, "val")[:300]
    golds = [task_of("finqa").gold_completion(record) for record in records]
    own = [reasoning_score(record, gold) for record, gold in zip(records, golds, strict=True)]
    other = [
        reasoning_score(record, gold) for record, gold in zip(records, golds[150:] + golds[:150], strict=True)
    ]
    assert sum(own) / len(own) > 0.98
    assert sum(other) / len(other) < 0.2
