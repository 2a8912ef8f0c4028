"""Steps under `accelerate launch`, and the plan that a scheduler runs."""

import json
import sys
import textwrap
from pathlib import Path

import pytest

from tests.support.driver import statuses
from utils.driver import command, execution
from utils.driver.command import without_export
from utils.driver.execution import Execution, environment_of
from utils.driver.goal import Goal, Overrides
from utils.driver.graph import build_graph
from utils.driver.launch import Launch, export_plan, read_launch
from utils.driver.process import Child
from utils.frame.files import REPO_ROOT, UserError
from utils.frame.pipeline import PIPELINE
from utils.frame.stage_plan import load_script, make_plan

DRIVER = load_script("12_driver.py")
SHARED = {
    *("03_sft_train.py", "04_generate_candidates.py", "05_train_ppo.py", "06_train_grpo.py"),
    *("07_train_rloo.py", "09_train_dpo.py", "10_evaluate.py"),
}


@pytest.fixture
def settings(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "accelerate.yaml"
        path.write_text(text)
        return str(path)

    return write


def parse(*argv: str):
    return command.parse(list(argv), "", "")


# --------------------------------------------------------------------------------------------- launching


def test_what_samples_or_trains_is_launched_and_nothing_else():
    launch = Launch("a.yaml", 2)
    scripts = {row.script for row in PIPELINE}
    assert {script for script in scripts if launch.processes(script) == 2} == SHARED
    for script in scripts:
        words = launch.command(script, ["--seed", "1"])
        assert words[0] == sys.executable and words[-3:] == [str(REPO_ROOT / script), "--seed", "1"]
        launched = ["-m", "accelerate.commands.launch", "--config_file", "a.yaml", "--num_processes", "2"]
        assert words[1:-3] == ([*launched, "--main_process_port", "0"] if script in SHARED else [])


def test_without_settings_a_step_is_this_python_and_its_script():
    assert Launch().command("06_train_grpo.py", ["--seed", "1"]) == [
        *(sys.executable, str(REPO_ROOT / "06_train_grpo.py"), "--seed", "1")
    ]
    assert Launch().processes("06_train_grpo.py") == 1


def test_the_number_of_processes_is_the_files_unless_given(settings):
    path = settings("num_processes: 4\n")
    assert read_launch(path, None).num_processes == 4
    assert read_launch(path, 2).num_processes == 2
    assert read_launch(None, None) == Launch()


def test_several_machines_meet_where_their_settings_say(settings):
    launch = read_launch(settings("num_processes: 8\nnum_machines: 2\nmain_process_port: 29501\n"), None)
    assert "--main_process_port" not in launch.command("05_train_ppo.py", [])
    assert launch.processes("05_train_ppo.py") == 4


def test_a_number_of_machines_that_is_none_is_refused(settings):
    with pytest.raises(UserError, match="accelerate.yaml: num_machines must be .* found 'two'"):
        read_launch(settings("num_processes: 8\nnum_machines: two\n"), None)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--num_processes", "2"], "--num_processes 2 needs --accelerate_config FILE"),
        (["--accelerate_config", "FILE"], "accelerate.yaml: num_processes must be .* found None"),
        (["--accelerate_config", "FILE", "--num_processes", "0"], "--num_processes must be a whole number"),
        (["--accelerate_config", "no/such.yaml"], "no/such.yaml: no such file"),
        (["--export_plan", "plan.json", "--overwrite"], "--overwrite does not go with --export_plan"),
        (["--compare_only", "--overwrite"], "--overwrite does not go with"),
    ],
)
def test_a_launch_that_cannot_be_is_one_line(settings, argv, message):
    path = settings("num_machines: 1\n")
    with pytest.raises(UserError, match=message) as caught:
        parse(*(path if word == "FILE" else word for word in argv))
    assert "\n" not in str(caught.value)


def test_processes_share_the_cores_and_the_machine(settings, monkeypatch):
    monkeypatch.setattr(execution, "cores", lambda: 8)
    monkeypatch.setattr(execution, "device_kind", lambda torch: "cpu")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert environment_of(1, 1) is None
    assert environment_of(1, 2)["OMP_NUM_THREADS"] == "4"
    assert environment_of(2, 2)["OMP_NUM_THREADS"] == "2"
    assert environment_of(4, 4)["OMP_NUM_THREADS"] == "1"
    assert "HF_HUB_DISABLE_PROGRESS_BARS" not in environment_of(1, 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert environment_of(2, 2)["OMP_NUM_THREADS"] == "3"
    # Several trainings run two at a time, but not where each takes the whole machine.
    path = settings("num_processes: 2\n")
    assert parse("--method", "all")[0].jobs == 2
    assert parse("--method", "all", "--accelerate_config", path)[0].jobs == 1
    assert parse("--method", "all", "--accelerate_config", path, "--jobs", "2")[0].jobs == 2


FAILING = """
import os, signal, sys, time
what, rank = sys.argv[1], os.environ["RANK"]
if what == "mistake" and rank == "0":
    print("error: /x/outputs/r/04_candidates/x has no pairs", file=sys.stderr)
    sys.exit(2)
if what == "crash" and rank == "1":
    import torch.distributed as distributed
    raise FloatingPointError("loss is nan")
if what == "kill" and rank == "1":
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(60)
"""


@pytest.mark.slow
def test_why_a_launched_step_failed_is_said_as_of_any_other(settings, tmp_path, capfd):
    """A launcher's own exit code is always 1, and its last words are not the step's."""
    path = settings("distributed_type: MULTI_GPU\nnum_machines: 1\nnum_processes: 2\n")
    script = tmp_path / "failing.py"
    script.write_text(textwrap.dedent(FAILING))
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", path]
    running = {
        what: Child([*launcher, "--num_processes", "2", "--main_process_port", "0", str(script), what], what)
        for what in ("mistake", "crash", "kill")
    }
    run_dir = Path("/x/outputs/r")
    ended = {
        what: (code := child.wait(), child.reason(code, run_dir, "s")) for what, child in running.items()
    }
    assert ended == {
        "mistake": (2, "s: 04_candidates/x has no pairs"),
        "crash": (1, "s: FloatingPointError: loss is nan (see s/stage.log)"),
        "kill": (-9, "s: ended by SIGKILL (see s/stage.log)"),
    }


LAUNCHER = [
    "Traceback (most recent call last):",
    '  File "accelerate/commands/launch.py", line 1423, in <module>',
    "errors.ChildFailedError:",
    "  exitcode  : 1 (pid: 6)",
]


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["[rank1]: Traceback (most recent call last):", "[rank1]: ValueError: no"], "ValueError: no"),
        ([], "exit code 1"),  # a verdict, such as on damaged data
    ],
)
def test_ranks_and_launchers_are_no_part_of_a_reason(capfd, lines, reason):
    code = f"import sys; print(*{[*lines, *LAUNCHER]!r}, sep='\\n', file=sys.stderr); sys.exit(1)"
    child = Child([sys.executable, "-c", code], "x")
    assert child.reason(child.wait(), Path("/x/r"), "s") == f"s: {reason} (see s/stage.log)"


# --------------------------------------------------------------------------------------------- the plan


def plan_of(path, *argv, launch=None, seeds=()):
    known, goal, overrides = parse(*argv, *(["--seeds", *map(str, seeds)] if seeds else []))
    nodes = build_graph(goal, overrides, known.run_id, known.seed, known.seeds)
    steps = export_plan(path, nodes, launch or Launch(), list(argv))
    assert json.loads(path.read_text()) == steps
    return {step["name"]: step for step in steps}


def test_every_step_of_a_plan_is_a_command_after_those_it_needs(tmp_path):
    steps = plan_of(tmp_path / "plan.json", "--method", "all", "--run_id", "mine", "--quick_test")
    compare = steps.pop("mine/11_comparison")
    nodes = build_graph(Goal(tuple(goal_methods())), Overrides(shared=["--quick_test"]), "mine", 0)[:-1]
    before = []
    for (name, step), node in zip(steps.items(), nodes, strict=True):
        python, script, *argv = step["argv"]
        plan = make_plan(load_script(Path(script).name).STAGE, argv)
        assert python == "python" and f"mine/{plan.name}" == name and argv == list(node.argv)
        assert step["run_id"] == "mine" and step["after"] == "ok"
        assert set(step["needs"]) <= set(before)
        before.append(name)
    assert steps["mine/05_ppo"]["needs"] == ["mine/03_sft"]
    assert steps["mine/09_dpo"]["needs"] == ["mine/08_preferences"]
    assert steps["mine/10_evaluation/base"]["needs"] == ["mine/02_rewards"]
    assert compare["after"] == "any"
    assert compare["needs"] == [name for name in before if "/10_evaluation/" in name]


def goal_methods():
    return ("sft", "distill", "ppo", "grpo", "rloo", "dpo")


def test_one_comparison_over_all_seeds_ends_the_plan(tmp_path):
    argv = ["--method", "ppo", "--run_id", "mine"]
    steps = plan_of(tmp_path / "plan.json", *argv, seeds=(3, 4))
    names = list(steps)
    assert names[-1] == "mine/11_comparison" and len(names) == 2 * 9 + 1
    assert steps[names[-1]]["argv"][2:] == [*argv, "--compare_only"]
    assert steps["mine_seed_4/05_ppo"]["needs"] == ["mine_seed_4/03_sft"]
    assert {name.split("/")[0] for name in steps[names[-1]]["needs"]} == {"mine_seed_3", "mine_seed_4"}


def test_a_plans_steps_are_launched(tmp_path):
    steps = plan_of(tmp_path / "plan.json", "--method", "sft", launch=Launch("a.yaml", 4))
    words = steps["run_001/03_sft"]["argv"]
    assert words[:6] == ["accelerate", "launch", "--config_file", "a.yaml", "--num_processes", "4"]
    assert steps["run_001/02_rewards"]["argv"][0] == "python"
    assert steps["run_001/11_comparison"]["argv"][0] == "python"


def test_a_plan_is_written_and_nothing_run(tmp_path, capsys, monkeypatch):
    """From another working directory, in which its commands are to be run."""
    monkeypatch.chdir(tmp_path)
    argv = ["--method", "sft", "--outputs_root", "out"]
    assert DRIVER.main([*argv, "--export_plan", "plan.json"]) == 0
    assert capsys.readouterr().out == "plan.json: 7 steps; nothing was run (--export_plan)\n"
    steps = json.loads(Path("plan.json").read_text())
    assert steps[0]["argv"][:2] == ["python", str(REPO_ROOT / "00_check_data.py")]
    assert steps[-1]["argv"] == ["python", str(REPO_ROOT / "12_driver.py"), *argv, "--compare_only"]
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


@pytest.mark.parametrize("words", [["--export_plan", "x"], ["--export_plan=x"]])
def test_the_comparison_of_a_plan_is_not_another_plan(words):
    assert without_export(["--method", "a", "b", *words, "--grpo.x", "1"]) == [
        *("--method", "a", "b", "--grpo.x", "1")
    ]


def test_compare_only_starts_no_step(fake, capfd):
    Execution(fake.nodes[:1]).run()
    outcomes = Execution(fake.nodes, compare_only=True).run()
    assert statuses(outcomes) == "a:up to date b:failed c:failed d:blocked"
    assert outcomes["r", "b"].reason == "05_ppo_b: has not finished (see 05_ppo_b/stage.log)"
    assert fake.calls() == ["a"]


def test_the_teacher_is_evaluated_where_asked(tmp_path):
    steps = plan_of(tmp_path / "plan.json", "--method", "distill", "--teacher")
    assert steps["run_001/10_evaluation/teacher"]["needs"] == ["run_001/02_rewards"]
    assert "run_001/10_evaluation/teacher" in steps["run_001/11_comparison"]["needs"]
    known, goal, overrides = parse("--method", "distill", "--teacher", "--seeds", "0", "1")
    [seeds] = [node for node in build_graph(goal, overrides, "r", 0, [0, 1]) if node.run_id == "r"]
    assert {key[1] for key in seeds.needs} == {"evaluate sft", "evaluate distill"}
