"""The graph of steps as it is executed: order, jobs, failures and what they take down, what is compared."""

import re

import pytest

from tests.support.driver import ALL, executed, options
from utils.driver import execution
from utils.driver.execution import Execution, exit_code
from utils.driver.goal import Goal, Overrides, Step
from utils.driver.graph import Node, Outcome, build_graph
from utils.frame.files import UserError

# --------------------------------------------------------------------- order and failures, without processes


def scripts(world) -> list[str]:
    return [name[:2] for name, _ in world.commands]


def test_one_job_runs_in_order(stages):
    nodes, outcomes = executed()
    assert [name for name, _ in stages.commands] == [node.step.script for node in nodes]
    assert stages.most == 1 and {outcome.status for outcome in outcomes.values()} == {"done"}


def test_two_jobs_keep_to_what_steps_need(stages):
    nodes, _ = executed(jobs=2, seeds=(0, 1))
    assert stages.most == 2 and len(stages.commands) == len(nodes)
    begun = [
        (options(words)["--run_id"], name, options(words).get("--policy")) for name, words in stages.commands
    ]
    for run in ("r_seed_0", "r_seed_1"):
        at = {name: begun.index((run, name, None)) for of, name, policy in begun if of == run and not policy}
        assert at["03_sft_train.py"] < at["04_generate_candidates.py"] < at["08_build_prefs.py"]
        assert begun.index((run, "10_evaluate.py", "dpo")) > at["09_train_dpo.py"]
        assert at["11_compare_runs.py"] == max(place for place, each in enumerate(begun) if each[0] == run)
    assert begun[-1][0] == "r"


def test_what_is_up_to_date_is_skipped(stages, capsys):
    nodes = build_graph(ALL, Overrides(), "r", 0)
    stages.statuses = {
        **dict.fromkeys(("00_data_validation", "01_preprocessing", "02_rewards", "03_sft"), "up_to_date"),
        **dict.fromkeys(("03_distill", "04_candidates", "05_ppo", "06_grpo", "07_rloo"), "up_to_date"),
        **dict.fromkeys(("08_preferences", "09_dpo", "11_comparison"), "up_to_date"),
        **{f"10_evaluation/{policy}": "up_to_date" for policy in ("base", *ALL.trained())},
    }
    _, outcomes = executed()
    assert stages.commands == [] and {each.status for each in outcomes.values()} == {"up to date"}
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(nodes) and lines[6] == f"[7/{len(nodes)}] 05_ppo: up to date"


@pytest.mark.parametrize("status", ["missing", "interrupted"])
def test_what_is_not_up_to_date_runs(stages, capsys, status):
    stages.statuses = {"06_grpo": status}
    executed(Goal(("grpo",)), overrides=Overrides(steps={"grpo": ["--beta", "1"]}))
    [words] = [words for name, words in stages.commands if name == "06_train_grpo.py"]
    assert words == ["--run_id", "r", "--seed", "0", "--beta", "1"]
    printed = capsys.readouterr().out
    assert f"[6/10] 06_grpo: 06_train_grpo.py ({status})" in printed
    assert re.search(r"^\[6/10\] 06_grpo: finished in \d\.\d s$", printed, flags=re.MULTILINE)


@pytest.mark.parametrize(("status", "again"), [("stale: inputs", True), ("missing", False)])
def test_a_comparison_is_redone_when_what_it_compares_changes(stages, status, again):
    stages.statuses = {"11_comparison": status}
    executed(Goal(("grpo",)))
    name, words = stages.commands[-1]
    assert name == "11_compare_runs.py" and ("--overwrite" in words) == again
    assert all("--overwrite" not in words for _, words in stages.commands[:-1])


def test_overwrite_redoes_everything(stages):
    stages.statuses = dict.fromkeys(("03_sft", "06_grpo", "11_comparison"), "up_to_date")
    nodes, _ = executed(Goal(("grpo",)), overwrite=True)
    assert [name for name, _ in stages.commands] == [node.step.script for node in nodes]
    assert all(words[-1] == "--overwrite" for _, words in stages.commands)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_failed_method_takes_no_other_down(stages, capsys, jobs):
    stages.codes = {"08_preferences": 2}
    nodes, outcomes = executed(jobs=jobs)
    assert {key for key, each in outcomes.items() if not each.ok} == {
        "r/preferences",
        "r/dpo",
        "r/evaluate dpo",
    }
    assert outcomes["r/dpo"] == Outcome("blocked", "08_preferences: reason 2", stage="08_preferences")
    assert exit_code(nodes, {tuple(key.split("/")): each for key, each in outcomes.items()}) == 2
    name, words = stages.commands[-1]
    assert options(words)["--policies"] == "[base, sft, distill, ppo, grpo, rloo, dpo]"
    assert stages.failed() == {"dpo": ("08_preferences", "08_preferences: reason 2")}
    assert capsys.readouterr().err == "error: dpo failed: 08_preferences: reason 2\n"


def test_a_failed_sft_blocks_all_that_rests_on_it(stages, capsys):
    stages.codes = {"03_sft": 1}
    nodes, outcomes = executed()
    assert scripts(stages) == ["00", "01", "02", "03", "10"]  # the base model can still be evaluated
    assert outcomes["r/evaluate rloo"].reason == "03_sft: reason 1"
    assert outcomes["r/compare"].status == "skipped"
    assert capsys.readouterr().err == "error: sft, distill, ppo, grpo, rloo, dpo failed: 03_sft: reason 1\n"


def test_failed_data_ends_everything(stages):
    stages.codes = {"00_data_validation": 1}
    _, outcomes = executed()
    assert scripts(stages) == ["00"]
    assert outcomes["r/evaluate base"].reason == "00_data_validation: reason 1"


def test_a_step_that_no_method_rests_on(stages, capsys):
    """Candidates are an audit to PPO; their failure is one, but not the method's."""
    stages.codes = {"04_candidates": 2}
    nodes, outcomes = executed(Goal(("ppo",)))
    assert outcomes["r/compare"].ok and stages.failed() == {}
    assert exit_code(nodes, {tuple(key.split("/")): each for key, each in outcomes.items()}) == 2
    assert capsys.readouterr().err == "error: candidates failed: 04_candidates: reason 2\n"


@pytest.mark.parametrize(("codes", "first"), [((1, 2), 1), ((2, 1), 2), ((-9, 2), 1), ((130, 1), 130)])
def test_the_exit_code_is_the_first_failures(stages, codes, first):
    stages.codes = {"05_ppo": codes[0], "06_grpo": codes[1]}
    nodes = build_graph(ALL, Overrides(), "r", 0)
    assert exit_code(nodes, Execution(nodes, jobs=2).run()) == first


def test_a_check_that_refuses_is_a_failure(stages, capsys):
    def refuse():
        raise UserError("not enough prompts")

    nodes = [
        Node("r", Step("ppo", "05_train_ppo.py"), ("--run_id", "r"), (), refuse),
        Node("r", Step("grpo", "06_train_grpo.py"), ("--run_id", "r")),
    ]
    outcomes = Execution(nodes).run()
    assert outcomes["r", "ppo"] == Outcome("failed", "05_ppo: not enough prompts", 2, stage="05_ppo")
    assert scripts(stages) == ["06"]


def test_a_graph_out_of_order_is_refused(stages):
    with pytest.raises(ValueError, match="needs a step that is not before it"):
        Execution([Node("r", Step("ppo", "05_train_ppo.py"), ("--run_id", "r"), (("r", "sft"),))]).run()


# ------------------------------------------------------------------------------------------------ seeds


def test_seeds_are_runs_and_are_compared(stages):
    nodes, outcomes = executed(Goal(("ppo", "grpo")), seeds=(3, 5))
    assert [node.run_id for node in nodes] == ["r_seed_3"] * 12 + ["r_seed_5"] * 12 + ["r"]
    for name, words in stages.commands[:-1]:
        given = options(words)
        assert given["--run_id"] == f"r_seed_{given['--seed']}", name
    assert options(stages.commands[11][1])["--policies"] == "[base, sft, ppo, grpo]"
    assert options(stages.commands[-1][1]) == {
        **{"--run_id": "r", "--seed": "0", "--by_seed": "true"},
        **{"--runs": "r_seed_3,r_seed_5", "--policies": "[sft, ppo, grpo]"},
    }


def test_one_seed_is_a_run_with_its_own_comparison(stages):
    nodes, _ = executed(Goal(("sft",)), seeds=(7,))
    assert {node.run_id for node in nodes} == {"r_seed_7"}
    assert nodes[-1].step.name == "compare" and "--by_seed" not in stages.commands[-1][1]


def test_a_policy_that_a_seed_lacks_is_left_out_with_the_reason(stages, capsys):
    stages.codes = {"r_seed_1/05_ppo": 1}
    executed(Goal(("ppo", "grpo")), seeds=(0, 1), jobs=2)
    given = options(stages.commands[-1][1])
    assert given["--runs"] == "r_seed_0,r_seed_1" and given["--policies"] == "[sft, ppo, grpo]"
    assert stages.failed() == {"seed_1/ppo": ("05_ppo", "05_ppo: reason 1")}
    assert stages.failed("r_seed_1") == {"ppo": ("05_ppo", "05_ppo: reason 1")}
    assert stages.failed("r_seed_0") == {}
    assert capsys.readouterr().err == "error: r_seed_1: ppo failed: 05_ppo: reason 1\n"


def test_a_seed_without_any_policy_is_left_out_with_the_reason(stages):
    stages.codes = {"r_seed_1/03_sft": 1}
    executed(Goal(("ppo",)), seeds=(0, 1, 2))
    given = options(stages.commands[-1][1])
    assert given["--runs"] == "r_seed_0,r_seed_2" and given["--policies"] == "[sft, ppo]"
    assert stages.failed() == {"seed_1": ("03_sft", "03_sft: reason 1")}


def test_fewer_than_two_seeds_are_not_compared(stages):
    stages.codes = {"r_seed_1/03_sft": 1}
    _, outcomes = executed(Goal(("ppo",)), seeds=(0, 1))
    assert outcomes["r/compare"].status == "skipped" and outcomes["r_seed_0/compare"].ok


def test_what_failed_is_noted_until_it_is_mended(stages):
    for codes, failed in (({"06_grpo": 1}, ["grpo"]), ({"05_ppo": -9}, ["ppo"]), ({}, [])):
        stages.codes = codes
        executed(Goal(("ppo", "grpo")))
        assert list(stages.failed()) == failed


# -------------------------------------------------------------------------------------------- the rest


def test_threads_are_shared_between_jobs(monkeypatch):
    monkeypatch.setattr(execution, "cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert execution.environment_of(1) is None
    assert execution.environment_of(3)["OMP_NUM_THREADS"] == "2"
    assert execution.environment_of(16)["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert execution.environment_of(3)["OMP_NUM_THREADS"] == "5"
