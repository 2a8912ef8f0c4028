"""The conformance suites: FinQA's cases by our rules, and the runner that others use."""

import json
import subprocess
import sys
from pathlib import Path

from tests.external.conformance.graders import equal_programs, ours_finqa

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "tests" / "external" / "conformance"


def test_finqa_cases():
    cases = [json.loads(line) for line in (FOLDER / "finqa.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(cases) > 90
    assert [case for case in cases if ours_finqa(case) != case["right"]] == []
    assert sum(equal_programs(case) != case["right"] for case in cases) > 20  # not what strings say


def test_the_runner_counts_and_lists_what_a_grader_gets_wrong(tmp_path):
    (tmp_path / "cases.jsonl").write_text(
        "".join(
            json.dumps({"kind": "k", "gold": "1", "answer": answer, "right": right}) + "\n"
            for answer, right in (("1", True), ("1.0", True), ("2", False))
        )
    )
    (tmp_path / "mine.py").write_text(
        "def always(case):\n    return True\n\ndef broken(case):\n    raise ValueError\n"
    )
    command = [sys.executable, str(FOLDER / "run_cases.py"), "cases.jsonl", "--list"]
    command += ["mine:always", "mine:broken"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    lines = result.stdout.splitlines()
    assert lines[0].startswith("mine:always accepts") and '"answer": "2"' in lines[0]
    assert lines[1] == "mine:always 3 cases {'wrong accepted': 1}"
    assert lines[-1] == "mine:broken 3 cases {'right rejected': 2}"
