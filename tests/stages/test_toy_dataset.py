"""A new form of data set is one reader and one task file: nothing else is edited, the stages know it."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from utils.frame.files import REPO_ROOT, read_json, read_jsonl

TOY = REPO_ROOT / "tests" / "support" / "toy_dataset"
CONFIG = """\
dataset: calendar
data_root: {root}
instruction: 'Close with "Date: YYYY-MM-DD".'
val_fraction: 0.25
"""


def row(number: int, day: str) -> str:
    return (
        json.dumps({"asked": f"which day is number {number} ?", "day": day, "steps": 1 + number % 2}) + "\n"
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of 00, 01, 02 and 10 on calendar questions, in a copy of this project with two more files."""
    project = tmp_path_factory.mktemp("project")
    for folder in ("utils", "configs"):
        shutil.copytree(REPO_ROOT / folder, project / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for script in REPO_ROOT.glob("[0-9][0-9]_*.py"):
        shutil.copy(script, project)
    shutil.copy(TOY / "reader.py", project / "utils" / "data" / "readers" / "calendar_days.py")
    shutil.copy(TOY / "task.py", project / "utils" / "grading" / "tasks" / "calendar_days.py")
    raw = project / "raw"
    raw.mkdir()
    (raw / "train.jsonl").write_text("".join(row(n, f"2024-02-{n + 1:02}") for n in range(30)))  # no 30th
    (raw / "test.jsonl").write_text("".join(row(100 + n, f"2023-12-{n + 1:02}") for n in range(4)))
    answers = ["so Date: 2023-12-01", "Date: 2023-12-01", "the third", "Date: 2023-12-30"]
    predictions = [json.dumps({"index": n, "response": text}) for n, text in enumerate(answers)]
    (project / "predictions.jsonl").write_text("\n".join(predictions))
    (project / "calendar.yaml").write_text(CONFIG.format(root=raw))
    data = ("--dataset_config", "calendar.yaml")
    for script, *words in (
        ("00_check_data.py", *data),
        ("01_prepare_dataset.py", *data),
        ("02_build_rewards.py",),
        ("10_evaluate.py", *data, "--predictions", "predictions.jsonl", "--policy", "other"),
    ):
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        command = [sys.executable, script, *words, "--outputs_root", "out"]
        done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{script}: {done.stderr}"
    return project / "out" / "run_001"


def test_rows_are_read_checked_and_rendered(run):
    problems = read_jsonl(run / "00_data_validation" / "problems.jsonl")
    assert [(p["id"], p["code"], p["message"]) for p in problems] == [
        ("train-29", "gold_program", "no day of the calendar: 2024-02-30")
    ]
    folder = run / "01_preprocessing"
    records = {split: read_jsonl(folder / f"{split}.jsonl") for split in ("train", "val", "test")}
    assert {split: len(found) for split, found in records.items()} == {"train": 22, "val": 7, "test": 4}
    first = records["test"][0]
    assert (first["dataset"], first["level"]) == ("calendar", 1)
    assert first["input_text"] == 'which day is number 100 ?\nClose with "Date: YYYY-MM-DD".'
    assert first["target_text"] == "Date: 2023-12-01"


def test_golds_and_unit_cases_are_graded_by_its_rules(run):
    metrics = read_json(run / "02_rewards" / "manifest.json")["metrics"]
    assert metrics["train"] == {"golds": 22, "gold_same_day": 22}
    results = read_json(run / "02_rewards" / "unit_tests" / "test_results.json")
    assert results["failed"] == results["gold_failures"] == []
    names = {result["id"].rpartition("/")[2] for result in results["results"]}
    assert names == {"gold", "gold_in_blanks", "empty", "words", "last_counts", "bare"}


def test_predictions_have_its_measures_and_reasons(run):
    folder = run / "10_evaluation" / "other"
    metrics = read_json(folder / "metrics.json")
    assert (metrics["accuracy"]["value"], metrics["day_accuracy"]["value"]) == (0.25, 0.25)
    assert metrics["tolerant_accuracy"]["value"] == 0.5 and metrics["format_validity"]["value"] == 0.75
    assert metrics["failure_reasons"] == {"answer_format": 1, "no_answer": 1, "wrong_answer": 1}
    with open(folder / "breakdown.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(each["day"], each["tolerant"], each["value"]) for each in rows] == [
        ("1", "1", "2023-12-01"),
        ("0", "1", "2023-12-01"),
        ("0", "0", ""),
        ("0", "0", "2023-12-30"),
    ]
