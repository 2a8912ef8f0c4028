"""docs/tutorial.md, followed from its first command to its last in this process, finds what the page says."""

import re
import shlex

import pytest

from tests.support.scripts import InThisProcess, execute_stage
from utils.frame.files import REPO_ROOT, read_json, read_jsonl
from utils.frame.stage_plan import load_script

DOCUMENT = (REPO_ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
COMMANDS = [line.split(maxsplit=1) for line in re.findall(r"^    python (\d\d_.*)$", DOCUMENT, re.MULTILINE)]

SHORT = ["--ppo.num_rollouts", "1", "--grpo.num_rollouts", "1"]


@pytest.mark.usefixtures("unrendered")
def test_following_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("utils.driver.execution.Child", InThisProcess)
    outputs = tmp_path / "outputs"
    assert len(COMMANDS) == 5
    for script, line in COMMANDS:
        words = [*shlex.split(line), "--outputs_root", str(outputs)]
        if script == "12_driver.py":
            small = SHORT if "ppo" in words else []  # one rollout in place of four
            in_full = [] if "--quick_test" in words else ["--dry_run"]
            assert load_script(script).main([*words, *small, *in_full]) == 0, line
        else:
            assert execute_stage(script, words) == 0, line
        said = capsys.readouterr().out
        if script == "11_compare_runs.py":
            assert "The test supports no difference between the policies" in said
    run = outputs / "tutorial"
    audit = read_json(run / "04_candidates" / "reward_audit.json")["components"]
    assert (
        audit["intrinsic"]["verdict"] == "worth_optimising"
        and audit["numeric_match"]["verdict"] == "partial_credit"
    )
    assert (run / "11_comparison" / "report.html").is_file()
    samples = run / "10_evaluation" / "sft" / "samples"
    wrong = {row["id"] for row in read_jsonl(samples / "predictions.jsonl") if not row["correct"]}
    maps = {row["id"]: row["values"]["intrinsic"] for row in read_jsonl(samples / "tokens.jsonl")}
    assert set(re.findall(r"test_\d+-\d", DOCUMENT)) <= wrong
    assert all(min(maps[item]) < -5 for item in wrong)  # the teacher marks a token of every wrong answer
