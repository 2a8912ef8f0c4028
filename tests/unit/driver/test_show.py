"""The table at the end: what 11 found, over seeds and in one run, with failed methods among the rest."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support.finished_runs import write_run
from tests.support.policy_results import SEEDS
from tests.support.scripts import execute_stage
from utils.comparison.paired import compare_all, load_result
from utils.driver.goal import Goal, Overrides
from utils.driver.graph import Outcome, build_graph
from utils.driver.show import show_results
from utils.evaluation.policy_names import evaluation_files
from utils.frame.criteria import judged
from utils.frame.failures import write_failures
from utils.frame.files import write_json

RIGHT = {"base": 0, "sft": 20, "ppo": 40}


def finished(folder, seeds=(), failed=()):
    """An execution of SFT, PPO and GRPO, of which the steps in ``failed`` (run, step id) went wrong."""
    shared = Overrides(shared=["--outputs_root", str(folder)])
    nodes = build_graph(Goal(("ppo", "grpo")), shared, "r", 3, seeds)
    outcomes = {node.key: Outcome("done") for node in nodes}
    for key in failed:
        outcomes[key] = Outcome("failed", "06_grpo: loss is nan", 1, stage="06_grpo")
    runs = {node.run_id: folder / node.run_id for node in nodes}
    return SimpleNamespace(nodes=nodes, outcomes=outcomes, run_dirs=runs, seconds=1.0)


def cells(printed: str, policy: str) -> list[str]:
    [line] = [line for line in printed.splitlines() if line.startswith(f"│ {policy} ")]
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_one_run(tmp_path, capsys):
    write_run(tmp_path / "r", 3, RIGHT)
    write_json(
        tmp_path / "r/11_comparison/summary.json",
        {"facts": ["data: sample"], "conclusions": ["- ppo is better than sft"]},
    )
    execution = finished(tmp_path, failed=[("r", "evaluate grpo")])
    met, failed = judged(1.0, at_least=0.9), judged(0.5, at_least=0.9)
    criteria = {"met": met, "answers of valid form": failed}
    write_json(tmp_path / "r/03_sft/manifest.json", {"outputs": {}, "criteria": criteria})
    show_results(execution)
    printed = capsys.readouterr().out
    results = [load_result(name, *evaluation_files(tmp_path / "r/10_evaluation" / name)) for name in RIGHT]
    pair = next(each for each in compare_all(results, 3) if (each.a, each.b) == ("sft", "ppo"))
    low, high = (100 * end for end in pair.ci95)
    assert cells(printed, "ppo")[3:] == [
        f"{100 * pair.difference:+.1f}",
        f"{low:+.1f} to {high:+.1f}",
        f"{pair.p_holm:.2g}",
    ]
    assert cells(printed, "sft")[3:] == ["", "", ""]
    assert cells(printed, "grpo")[1] == "failed"
    assert "grpo failed: 06_grpo: loss is nan\n" in printed
    assert "1 failed; what is finished is kept" in printed.splitlines()[0]
    assert (
        printed.index("data: sample\n") < printed.index("│ sft") < printed.index("- ppo is better than sft\n")
    )
    end = [" ".join(line.split()) for line in printed.splitlines()[-5:]]
    assert end[:2] == [
        "1 acceptance criterion not met:",
        "[FAIL] r/03_sft: answers of valid form: 0.5 (at least 0.9)",
    ]
    files = [Path(line.split()[0]).relative_to(tmp_path).as_posix() for line in end[2:]]
    assert files == ["r/11_comparison/report.html", "r/11_comparison/summary.csv", "r/README.md"]


@pytest.mark.slow
@pytest.mark.parametrize("fail", [False, True])
def test_over_seeds_it_is_what_stage_11_wrote(tmp_path, capsys, fail):
    """From the command that the driver gives to 11, through its files, to the table."""
    for seed in SEEDS:
        right = {policy: count + seed for policy, count in RIGHT.items() if policy != "base"}
        write_run(tmp_path / f"r_seed_{seed}", seed, right | ({} if fail else {"grpo": 30}))
    failed = [(f"r_seed_{SEEDS[1]}", "evaluate grpo")] if fail else []
    execution = finished(tmp_path, SEEDS, failed)
    argv = execution.nodes[-1].command(execution.outcomes)
    write_failures(tmp_path / "r", execution.nodes[-1].failures(execution.outcomes))
    assert execute_stage("11_compare_runs.py", argv) == 0
    report = (tmp_path / "r" / "11_comparison" / "report.md").read_text()
    capsys.readouterr()
    show_results(execution)
    printed = capsys.readouterr().out
    assert f"r: mean accuracy over {len(SEEDS)} seeds" in printed
    assert cells(printed, "ppo")[1] in report and cells(printed, "ppo")[3].startswith("+")
    if fail:
        assert cells(printed, "grpo")[1] == "failed"
        assert f"seed_{SEEDS[1]}/grpo failed: 06_grpo: loss is nan" in printed
        assert "06_grpo: loss is nan" in report
    else:
        assert cells(printed, "grpo")[1].endswith("%") and "failed:" not in printed


@pytest.mark.slow
def test_a_seed_that_failed_altogether_is_named_in_the_report(tmp_path, capsys):
    for seed in SEEDS[:2]:
        write_run(tmp_path / f"r_seed_{seed}", seed, {"sft": 20 + seed, "ppo": 40, "grpo": 30})
    lost = SEEDS[2]
    failed = [(f"r_seed_{lost}", f"evaluate {policy}") for policy in ("sft", "ppo", "grpo")]
    execution = finished(tmp_path, SEEDS, failed)
    argv = execution.nodes[-1].command(execution.outcomes)
    write_failures(tmp_path / "r", execution.nodes[-1].failures(execution.outcomes))
    assert execute_stage("11_compare_runs.py", argv) == 0
    assert f"seed_{lost}" in (tmp_path / "r" / "11_comparison" / "report.md").read_text()
    show_results(execution)
    printed = capsys.readouterr().out
    assert f"seed_{lost} failed: 06_grpo: loss is nan" in printed and "over 2 seeds" in printed
    assert cells(printed, "ppo")[1].endswith("%")
