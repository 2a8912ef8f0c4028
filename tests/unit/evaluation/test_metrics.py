"""Metrics and per-item files against counts made by hand."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from utils.data.records import Record
from utils.evaluation.metrics import compute_metrics, headline
from utils.evaluation.policy import summary_lines, write_evaluation
from utils.frame.files import UserError
from utils.grading.graded_item import breakdown_row, grade_items
from utils.grading.outside_predictions import Prediction
from utils.grading.program import tokenize_program
from utils.statistics.accuracy_tests import rate
from utils.statistics.clusters import share


def record(number, level, kind="", **changes):
    fields = {
        "id": f"t-{number}",
        "dataset": "finqa",
        "question": f"question {number}?",
        "input_text": "input",
        "target_text": "target",
        "target_answer": "3.0",
        "target_program": "add(1, 2)",
        "level": level,
        "type": kind,
    }
    return Record(**(fields | changes))


RECORDS = [
    record(0, 1, "sum"),
    record(1, 1),
    record(2, 2, "sum"),
    record(3, 2, "gap"),
    record(4, None, "gap"),
]


def answer(program, **changes):
    text = json.dumps({"program": program, "answer": "3"})
    return Prediction(**({"response": text, "token_count": 10, "truncated": False} | changes))


PREDICTIONS = {
    "t-0": answer("add(1, 2)"),
    "t-1": answer("add(2, 1), add(#0, 0)", token_count=20),  # right value, another program
    "t-2": answer("add(1, 3)", token_count=40),
    "t-3": answer("", response='{"program": "add(1,', token_count=64, truncated=True),
}


@pytest.fixture(scope="module")
def items():
    return grade_items(RECORDS, PREDICTIONS)


@pytest.fixture(scope="module")
def metrics(items):
    return compute_metrics(items, "sft", "test")


def test_rates_are_over_all_gold_items(metrics):
    low, high = stats.binomtest(2, 5).proportion_ci(method="wilson")
    assert metrics["accuracy"] == {"value": 0.4, "ci95": [low, high], "n": 5}
    assert metrics["execution_accuracy"] == metrics["accuracy"]
    assert (metrics["program_accuracy"]["value"], metrics["program_accuracy"]["n"]) == (0.2, 5)
    assert (metrics["format_validity"]["value"], metrics["format_validity"]["n"]) == (0.6, 5)
    assert metrics["missing"] == {"count": 1, "ids": ["t-4"]}


def test_items_that_share_a_report_widen_every_interval():
    records = [replace(each, report=name) for each, name in zip(RECORDS, "AAABB", strict=True)]
    shared = grade_items(records, PREDICTIONS)
    found = compute_metrics(shared, "sft", "test")
    accuracy = found["accuracy"]
    assert accuracy == share([True, True, False, False, False], np.array([0, 0, 0, 1, 1]))
    assert (accuracy["value"], accuracy["n"], accuracy["clusters"]) == (0.4, 5, 2)
    assert accuracy["plain95"] == pytest.approx(rate(2, 5)["ci95"])
    assert accuracy["ci95"][1] > accuracy["plain95"][1]
    assert (found["format_validity"]["clusters"], found["accuracy_by_level"]["1"]["clusters"]) == (2, 1)
    assert "clusters" not in found["accuracy_by_level"]["2"]  # one item of each report
    assert "n = 5 of 2 reports" in summary_lines(found)[0]
    assert headline(found)["accuracy"] == 0.4
    assert [row["report"] for row in map(breakdown_row, shared)] == list("AAABB")


def test_levels_and_types_count_only_their_own_items(metrics):
    by_level = {key: (share["value"], share["n"]) for key, share in metrics["accuracy_by_level"].items()}
    assert by_level == {"1": (1.0, 2), "2": (0.0, 2)}
    by_type = {key: (share["value"], share["n"]) for key, share in metrics["accuracy_by_type"].items()}
    assert by_type == {"sum": (0.5, 2), "gap": (0.0, 2)}


def test_failure_reasons_add_up_to_the_wrong_items(metrics):
    assert metrics["failure_reasons"] == {"cut_off": 1, "missing_prediction": 1, "wrong_operand": 1}


def test_lengths_and_truncation_are_of_the_answers_there_are(metrics):
    assert metrics["response_tokens"] == {"mean": 33.5, "median": 30.0, "p95": pytest.approx(60.4), "max": 64}
    assert (metrics["truncation_rate"]["value"], metrics["truncation_rate"]["n"]) == (0.25, 4)


def test_tolerant_score_is_named_apart():
    predictions = {"t-0": answer("add(1, 2.001)"), "t-1": answer("multiply(3, const_100)")}
    metrics = compute_metrics(grade_items(RECORDS, predictions), "sft", "test")
    assert (metrics["accuracy"]["value"], metrics["tolerant_accuracy"]["value"]) == (0.0, 0.4)


def test_outside_programs_have_no_lengths_and_no_truncation_rate():
    predictions = {r.id: Prediction(program_tokens=("add(", "1", "2", ")", "EOF")) for r in RECORDS}
    metrics = compute_metrics(grade_items(RECORDS, predictions), "x", "test")
    assert metrics["accuracy"]["value"] == metrics["program_accuracy"]["value"] == 1.0
    assert metrics["response_tokens"] is None and "truncation_rate" not in metrics
    without_end = {r.id: Prediction(program_tokens=("add(", "1", "2", ")")) for r in RECORDS}
    assert compute_metrics(grade_items(RECORDS, without_end), "x", "test")["accuracy"]["value"] == 0.0


def test_gsm8k_has_strict_and_flexible():
    records = [record(i, 2, dataset="gsm8k", target_answer="18", target_program="") for i in range(4)]
    texts = ["#### 18", "#### 18.", "so $18", "#### 19"]
    predictions = {r.id: Prediction(response=t) for r, t in zip(records, texts, strict=True)}
    metrics = compute_metrics(grade_items(records, predictions), "x", "test")
    assert metrics["accuracy"] == metrics["strict_accuracy"]
    assert (metrics["strict_accuracy"]["value"], metrics["flexible_accuracy"]["value"]) == (0.25, 0.75)
    assert "program_accuracy" not in metrics


def test_unusable_gold_is_an_error_that_names_the_record():
    with pytest.raises(UserError, match="t-0"):
        grade_items([record(0, 1, target_answer="many")], PREDICTIONS)


def test_files_have_one_row_per_gold_item_in_file_order(tmp_path, items, metrics):
    write_evaluation(tmp_path, items, metrics)
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    with open(tmp_path / "breakdown.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    measures = ["execution", "program", "tolerant"]
    reasoning = ["step_coverage", "step_order", "operand_grounding", "answer_support"]
    assert list(rows[0]) == [
        *("id", "correct", "level", "type", "report"),
        *("failure_reason", "failure_detail", "format_valid"),
        *(*measures, "value", "gold", "tokens", "truncated", *reasoning),
    ]
    assert [(row["id"], row["correct"]) for row in rows] == list(
        zip([r.id for r in RECORDS], "11000", strict=True)
    )
    assert [row["level"] for row in rows] == ["1", "1", "2", "2", ""]
    assert [row["truncated"] for row in rows] == ["0", "0", "0", "1", ""]
    assert [row["failure_reason"] for row in rows][2:] == ["wrong_operand", "cut_off", "missing_prediction"]
    lines = [json.loads(line) for line in (tmp_path / "samples" / "predictions.jsonl").open()]
    assert [line["id"] for line in lines] == [r.id for r in RECORDS]
    assert lines[1]["program"] == "add(2, 1), add(#0, 0)" and lines[1]["value"] == "3.0"
    assert lines[1]["measures"] == {
        "execution_accuracy": True,
        "program_accuracy": False,
        "tolerant_accuracy": True,
    }
    assert lines[4]["response"] is None and lines[4]["correct"] is False


def test_hostile_responses_keep_the_table_readable(tmp_path):
    records = [record(i, 1, dataset="math", target_answer="12", target_program="") for i in range(3)]
    texts = ['\\boxed{a\x00\r\n"b,c\u2028}', "\\boxed{" + "9" * 150_000 + "}", "\u202e\\boxed{=cmd()}"]
    predictions = {r.id: Prediction(response=t) for r, t in zip(records, texts, strict=True)}
    items = grade_items(records, predictions)
    write_evaluation(tmp_path, items, compute_metrics(items, "x", "test"))
    assert len((tmp_path / "breakdown.csv").read_text().split("\n")) == 1 + len(records) + 1
    with open(tmp_path / "breakdown.csv", newline="") as file:
        assert [row["correct"] for row in csv.DictReader(file)] == ["0", "0", "0"]
    assert all(len(line) < 2000 for line in (tmp_path / "breakdown.csv").read_text().splitlines())


def test_headline_and_summary_name_what_is_missing(metrics):
    assert headline(metrics)["accuracy"] == 0.4 and headline(metrics)["missing"] == 1
    text = "\n".join(summary_lines(metrics))
    assert "1 of 5 items have no prediction and count as wrong: t-4" in text
    assert "accuracy" in text and "40.0 %" in text


@pytest.mark.parametrize("split,count", [("val", 450), ("test", 431)])
def test_finqa_gold_programs_score_one(shared_data, split, count):
    from utils.data.settings import DatasetConfig
    from utils.data.sources import gold_records

    records = gold_records(DatasetConfig(dataset="finqa", data_root=str(shared_data / "finqa")), split)
    tokens = {r.id: Prediction(program_tokens=tuple(tokenize_program(r.target_program))) for r in records}
    metrics = compute_metrics(grade_items(records, tokens), "gold", split)
    assert (metrics["execution_accuracy"]["value"], metrics["program_accuracy"]["value"]) == (1.0, 1.0)
    assert metrics["n"] == count and metrics["failure_reasons"] == {}
