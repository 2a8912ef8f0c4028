"""A method of one's own is one folder, one YAML file and one row of the table; all others know it from there.

The toy is the example of docs/extending.md: GRPO whose advantages are divided by the group's mean. It is
added to a copy of the repository.
"""

import csv
import json
import re
import shutil
import subprocess
import sys
import textwrap

import pytest

from utils.frame.files import REPO_ROOT

DOCUMENT = (REPO_ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
FILES = re.findall(r"<!-- file: ((?:utils|configs)/\S+) -->\n```\w+\n(.*?)```", DOCUMENT, re.DOTALL)
[ROW] = re.findall(r"<!-- row -->\n```\w+\n(.*?)\n```", DOCUMENT, re.DOTALL)
ROW = f"{textwrap.indent(ROW, '    ')},\n"
TINY = (
    "--toy.num_rollouts 2 --candidates.max_items 1 --candidates.num_candidates 2 --evaluate.max_items 4 "
    "--evaluate.teacher_metrics false --evaluate.reference_metrics false --model.validation.num_items 4"
)
# The driver's steps, in one process: starting ten takes longer than what they do.
STEPS = """
import sys

from utils.driver import command
from utils.driver.graph import Outcome, build_graph
from utils.frame.stage import execute
from utils.frame.stage_plan import load_script

known, goal, overrides = command.parse(sys.argv[1:], "", "")
outcomes = {}
for node in build_graph(goal, overrides, known.run_id, known.seed):
    script = load_script(node.step.script)
    assert execute(script.STAGE, script.run, node.command(outcomes)) == 0, node.key
    outcomes[node.key] = Outcome("done")
"""
AFTER = "    _RLOO,\n"


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A copy of the repository with the toy in it."""
    copy = tmp_path_factory.mktemp("repository")
    for name in ("utils", "configs", "docs"):
        shutil.copytree(REPO_ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for script in REPO_ROOT.glob("[01][0-9]_*.py"):
        shutil.copy(script, copy)
    (copy / "assets").symlink_to(REPO_ROOT / "assets")
    assert len(FILES) == 3
    for name, text in FILES:
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_text(text, encoding="utf-8")
    table = copy / "utils" / "frame" / "pipeline.py"
    text = table.read_text(encoding="utf-8")
    assert text.count(AFTER) == 1
    table.write_text(text.replace(AFTER, ROW + AFTER), encoding="utf-8")
    return copy


@pytest.fixture
def run(repository):
    """Run a command of the copy; its exit code and what it said."""

    def run(command: str, code: int = 0) -> str:
        words = [sys.executable, *command.split()]
        done = subprocess.run(
            words, cwd=repository, capture_output=True, text=True, timeout=1800, check=False
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


def rows_of(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_its_script_and_the_driver_know_it(run):
    said = run("06_train_grpo.py --help")
    assert (
        "--preset  which method to train [grpo | dr_grpo |" in said
        and "| gdpo | toy] (default: grpo;" in said
    )
    assert "Improve the SFT policy by GRPO." in said and "--algo.loss_type" in said
    said = run("06_train_grpo.py --preset toy --help")
    assert "Improve the SFT policy by the toy." in said and "--algo.loss_type" not in said
    assert "writes: 06_toy/: ckpt_toy/" in said and "a folder 06_toy_<reward> for others" in said
    assert "algo tier, defaults from configs/algorithms/toy.yaml" in said
    said = " ".join(run("12_driver.py --help").split())
    assert "sft, distill, ppo, grpo, toy, rloo, dpo, or all" in said and "gdpo, toy, rloo," in said
    assert "gdpo, toy, rloo" in run("10_evaluate.py --help")


def test_it_has_a_budget_and_variants(run):
    said = run("12_driver.py --method all --curriculum random sec --reward task --dry_run")
    assert "budget of grpo: 8192 completions of 1024 prompts" in said
    assert "budget of toy: 8192 completions of 1024 prompts" in said
    for folder in ("06_toy_task", "06_toy_task_sec"):
        assert f"{folder}: 06_train_grpo.py (missing)" in said
        assert f"10_evaluation/{folder[3:]}: 10_evaluate.py (missing)" in said
    few = run("12_driver.py --method toy rloo --toy.num_rollouts 1", code=2)
    assert "(toy 128, rloo 8192)" in few
    groups = run("12_driver.py --method toy rloo --toy.group 4", code=2)
    assert "make --toy.group, --rloo.num_samples equal" in groups
    said = run("12_driver.py --grpo.preset toy --method grpo", code=2)
    assert "name what to train by --method: ppo, vapo, grpo," in said and ", gdpo, toy, " in said
    said = run("05_train_ppo.py --preset toy", code=2)
    assert '--preset must be one of ppo, vapo, found "toy"' in said
    assert 'gdpo, toy, found "tox"' in run("06_train_grpo.py --preset tox", code=2)


def test_the_tables_of_the_documentation_have_it(run, repository):
    run("-m docs.configuration_tables")
    document = (repository / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert "### Algo tier: `ToyAlgo` (`configs/algorithms/toy.yaml`)" in document
    assert "### Options of `06_train_grpo.py --preset toy`" in document
    assert "\\| gdpo \\| toy] |" in document


def test_it_is_trained_evaluated_and_compared(run, repository):
    (repository / "steps.py").write_text(STEPS)
    assert "10_evaluation/toy: done" in run(f"steps.py --method toy --quick_test {TINY}")
    folder = repository / "outputs" / "run_001"
    manifest = json.loads((folder / "06_toy" / "manifest.json").read_text())
    assert manifest["stage"] == "06_toy" and manifest["metrics"]["cost"]["sampled_completions"] == 32
    log = [json.loads(line) for line in (folder / "06_toy/logs/metrics.jsonl").read_text().splitlines()]
    assert max(row.get("advantages/largest", 0) for row in log) > 0
    evaluated = json.loads((folder / "10_evaluation" / "toy" / "manifest.json").read_text())
    assert "06_toy/ckpt_toy/best" in evaluated["inputs"]
    compared = folder / "11_comparison"
    [summary] = [row for row in rows_of(compared / "summary.csv") if row["policy"] == "toy"]
    assert (summary["status"], summary["sampled_completions"]) == ("ok", "32")
    steps = [row for row in rows_of(compared / "curves.csv") if row["method"] == "toy"]
    assert [int(row["sampled_completions"]) for row in steps] == [0, 32]
    [seconds] = [row for row in rows_of(compared / "timing.csv") if row["policy"] == "toy"]
    assert float(seconds["sampling"]) > 0
    report = (compared / "report.md").read_text(encoding="utf-8")
    assert "| toy | 06_toy | 32 |" in report and "sft → toy" in report


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("utils/methods/toy/trainer.py", "toy: there is no utils/methods/toy/trainer.py"),
        ("configs/algorithms/toy.yaml", "toy: there is no configs/algorithms/toy.yaml"),
    ],
)
def test_a_file_that_is_forgotten_ends_every_script(run, repository, path, said):
    kept = repository / "kept"
    (repository / path).rename(kept)
    try:
        assert said in run("00_check_data.py --help", code=1)
    finally:
        kept.rename(repository / path)


def test_a_row_that_is_forgotten_ends_every_script(run, repository):
    table = repository / "utils" / "frame" / "pipeline.py"
    text = table.read_text(encoding="utf-8")
    table.write_text(text.replace(ROW, ""), encoding="utf-8")
    try:
        said = run("12_driver.py --help", code=1)
        assert "no row has utils/methods/toy" in said
    finally:
        table.write_text(text, encoding="utf-8")
