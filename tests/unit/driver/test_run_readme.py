"""A run's README: goal, configuration, results, how to continue; left alone once someone has edited it."""

from pathlib import Path

from tests.support.finished_runs import write_methods
from utils.driver.goal import Goal, Overrides
from utils.driver.graph import build_graph
from utils.driver.run_readme import write_readmes

ARGV = [
    "--method",
    "grpo",
    "--outputs_root",
    "/somewhere/else",
    "--jobs",
    "2",
    "--note",
    "why ?",
    "--compare_only",
]


def write(run_dir: Path, note: str | None = None) -> str:
    nodes = build_graph(Goal(("grpo",)), Overrides(), run_dir.name, 0)
    write_readmes(nodes, {run_dir.name: run_dir}, note, ARGV)
    path = run_dir / "README.md"
    return path.read_text() if path.is_file() else ""


def test_it_says_goal_configuration_results_and_how_to_continue(tmp_path):
    run_dir = write_methods(tmp_path / "s0", 0)
    (run_dir / "11_comparison").mkdir()
    (run_dir / "11_comparison" / "summary.csv").write_text(
        "policy,accuracy,accuracy_low,accuracy_high,status,reason\n"
        "sft,0.5,0.4,0.6,ok,\ndpo,,,,failed,no pairs\n"
    )
    text = write(run_dir, "why ?")
    assert text.startswith("# s0\n\nGoal: why ?\n")
    for line in ("- data: sample\n", "- policy: student, teacher: teacher\n", "- seed: 0\n", "06_grpo"):
        assert line in text
    assert "| sft | 50.0 % | 40.0 to 60.0 % |" in text and "| dpo | failed | no pairs |" in text
    assert "python 12_driver.py --method grpo\n" in text and "/somewhere" not in text
    assert write(run_dir) == text  # the goal stays, and so do the bytes


def test_an_edited_one_is_never_overwritten(tmp_path):
    run_dir = tmp_path / "s0"
    run_dir.mkdir()
    first = write(run_dir)
    assert "None yet." in first
    for text in (first.replace("None yet.", "Great."), first + "mine\n", "mine\n"):
        (run_dir / "README.md").write_text(text)
        assert write(run_dir, "another goal") == text


def test_a_run_that_has_not_begun_gets_none(tmp_path):
    assert write(tmp_path / "s0") == "" and not (tmp_path / "s0").exists()
