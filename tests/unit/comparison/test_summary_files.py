"""summary.csv under the names that others use, and summary.json with everything."""

import json

from tests.support.finished_runs import compare_methods, write_methods
from utils.comparison.summary_files import _program_validity
from utils.frame.files import read_csv


def test_both_files_of_a_comparison(tmp_path, unrendered):
    write_methods(tmp_path / "s0", 3)
    assert compare_methods(tmp_path, seeds=False) == 0
    out = tmp_path / "s0" / "11_comparison"
    rows = {row["policy"]: row for row in read_csv(out / "summary.csv")}
    assert list(rows["ppo"])[:5] == ["policy", "method", "seed", "exact_match", "program_validity"]
    assert (rows["ppo"]["method"], rows["ppo"]["seed"]) == ("ppo", "3")
    assert rows["ppo"]["exact_match"] == rows["ppo"]["accuracy"]
    whole = json.loads((out / "summary.json").read_text())
    assert set(whole["policies"]) == set(rows) and whole["policies"]["ppo"][0]["accuracy"]["n"] == 60
    assert len(whole["pairs"]) == 10 and whole["failed"] == {}


def test_program_validity_counts_answers_whose_program_runs():
    metrics = {
        "n": 10,
        "program_accuracy": {},
        "missing": {"count": 1},
        "failure_reasons": {"invalid_program": 2, "invalid_json": 1, "wrong_operand": 3},
    }
    assert _program_validity(metrics) == 0.6
    assert _program_validity({"n": 10}) is None
