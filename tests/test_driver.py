"""The driver without any training: where options go, what a status leads to, errors and exit codes."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from utils import driver
from utils.common import REPO_ROOT, UserError
from utils.driver import Goal, Overrides, Step, run_goal
from utils.plan import Prepared, command_for, load_script

SCRIPT = load_script("12_driver.py")


def step(method: str, name: str) -> Step:
    return next(step for step in Goal(method).steps() if step.name == name)


def routed(*argv: str, method: str = "grpo") -> dict[str, list[str]]:
    """The words each script gets, but for the run's and the seed's."""
    _, _, overrides = SCRIPT.parse([*argv, "--method", method])
    return {
        f"{step.name} {step.arguments[1]}" if step.name == "evaluate" else step.name: [
            word for word in overrides.argv(step) if word not in ("--run_id", "run_001", "--seed", "0")
        ]
        for step in Goal(method).steps()
    }


# --------------------------------------------------------------------------------------------- methods


def test_the_steps_of_a_method_in_order():
    """From raw data to a comparison of the policies that the method made and started from."""
    assert [(step.script[:2], step.name) for step in Goal("grpo").steps()] == [
        ("00", "check"),
        ("01", "prepare"),
        ("02", "rewards"),
        ("03", "sft"),
        ("04", "candidates"),
        ("06", "grpo"),
        ("10", "evaluate"),
        ("10", "evaluate"),
        ("10", "evaluate"),
        ("11", "compare"),
    ]
    assert [step.arguments[1] for step in Goal("grpo").steps() if step.name == "evaluate"] == [
        "base",
        "sft",
        "grpo",
    ]
    assert step("grpo", "compare").arguments == ("--policies", "[base, sft, grpo]")
    assert step("sft", "compare").arguments == ("--policies", "[base, sft]")


@pytest.mark.parametrize(
    ("method", "reward", "policy"),
    [
        ("ppo", None, "ppo"),
        ("ppo", "combined", "ppo"),
        ("ppo", "intrinsic", "ppo_intrinsic"),
        ("grpo", "task", "grpo"),
        ("grpo", "combined", "grpo_combined"),
    ],
)
def test_a_reward_that_is_not_the_default_names_the_policy(method, reward, policy):
    """The folder that the training stage writes is the one that the evaluation reads."""
    goal = Goal(method, reward)
    assert goal.policies() == ["base", "sft", policy]
    prepared = driver.prepare(load_script(goal.training().script).STAGE, list(goal.training().arguments))
    number = {"ppo": "05", "grpo": "06"}[method]
    assert prepared.out.name == f"{number}_{policy}"


@pytest.mark.parametrize(
    ("folder", "options"),
    [
        ("05_ppo", ""),
        ("05_ppo_intrinsic", " --reward intrinsic"),
        ("06_grpo_combined", " --reward combined"),
        ("02_rewards_audit", " --audit"),
    ],
)
def test_the_command_that_makes_a_variants_folder(folder, options, tmp_path):
    """What an error about a missing input tells to run writes the folder that is missing."""
    words = command_for(Path(folder), "run_001", None).split()
    assert words[2:] == ["--run_id", "run_001", *options.split()]
    argv = [*words[2:], "--output_dir", str(tmp_path)]
    assert driver.prepare(load_script(words[1]).STAGE, argv).out.name == folder


def test_a_reward_that_a_method_has_not_is_one_line():
    with pytest.raises(UserError, match="--reward task does not go with --method sft: .* pays no reward"):
        Goal("sft", "task").steps()
    with pytest.raises(UserError, match="--reward gold .* choose from combined, task, intrinsic"):
        Goal("ppo", "gold").steps()


@pytest.mark.parametrize("method", driver.METHODS)
def test_every_step_is_a_script_that_takes_its_arguments(method, tmp_path):
    for step in Goal(method).steps():
        stage = load_script(step.script).STAGE
        prepared = driver.prepare(stage, [*step.arguments, "--output_dir", str(tmp_path)])
        assert prepared.status == "missing" and prepared.run_dir == tmp_path / "run_001"


# --------------------------------------------------------------------------------------------- options


def test_options_of_a_step_go_to_it_alone():
    words = routed("--grpo.num_iterations", "2", "--sft.learning_rate=1e-4", "--compare.alpha", "0.1")
    assert words["grpo"] == ["--num_iterations", "2"]
    assert words["sft"] == ["--learning_rate", "1e-4"]
    assert words["compare"][-2:] == ["--alpha", "0.1"]
    assert words["check"] == words["candidates"] == []
    assert words["evaluate sft"] == ["--policy", "sft"]


def test_nested_keys_keep_their_dots():
    words = routed("--sft.lora.enabled", "false")
    assert words["sft"] == ["--lora.enabled", "false"]


def test_options_of_a_tier_go_to_every_stage_that_has_it():
    words = routed("--model.training.save_steps", "4", "--dataset.max_train", "10")
    for name, given in words.items():
        tiers = load_script(step("grpo", name.split()[0]).script).STAGE.tiers
        assert ("--model.training.save_steps" in given) == ("model" in tiers), name
        assert ("--dataset.max_train" in given) == ("dataset" in tiers), name
    assert words["sft"] == ["--model.training.save_steps", "4"]
    assert words["prepare"] == ["--dataset.max_train", "10"]


def test_a_tiers_file_goes_before_its_keys():
    words = routed("--model.lora.r", "8", "--config", "configs/models/sample.yaml")
    assert words["grpo"] == ["--config", "configs/models/sample.yaml", "--model.lora.r", "8"]
    assert words["check"] == []


def test_options_of_all_stages_go_everywhere(tmp_path):
    _, _, overrides = SCRIPT.parse(
        ["--method", "grpo", "--run_id", "mine", "--seed", "7", "--output_dir", str(tmp_path), "--quick_test"]
    )
    for step in Goal("grpo").steps():
        prepared = driver.prepare(load_script(step.script).STAGE, overrides.argv(step))
        assert prepared.run_dir == tmp_path / "mine"
        assert prepared.config.seed == 7 and prepared.config.quick_test


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--grop.num_iterations", "2"], "unknown option --grop.num_iterations.*'?grpo'?"),
        (["--modl.lora.r", "2"], "unknown option --modl.lora.r.*'?model'?"),
        (["--learning_rate", "2"], "unknown option --learning_rate.*--OWNER.KEY VALUE"),
        (["--grpo"], "unknown option --grpo"),
        (["stray"], "'stray' belongs to no option"),
    ],
)
def test_an_option_without_an_owner_is_one_line(argv, message):
    with pytest.raises(UserError, match=message) as caught:
        SCRIPT.parse(["--method", "grpo", *argv])
    assert "\n" not in str(caught.value)


def test_a_step_of_another_method_is_no_owner():
    with pytest.raises(UserError, match="unknown option --grpo.beta"):
        SCRIPT.parse(["--method", "sft", "--grpo.beta", "0.1"])


# -------------------------------------------------------------------------------------------- statuses


@pytest.fixture
def stages(monkeypatch, tmp_path):
    """Statuses by step name, and the commands that are run instead of scripts; all succeed but ``codes``."""
    world = SimpleNamespace(statuses={}, codes={}, commands=[])

    def prepare(stage, argv):
        status = world.statuses.get(stage.folder, "up_to_date")
        return Prepared(None, tmp_path / "run_001", tmp_path / "run_001" / stage.folder, status)

    def run(command, check):
        assert command[0] == sys.executable and check is False
        name = Path(command[1]).name
        world.commands.append((name, command[2:]))
        return SimpleNamespace(returncode=world.codes.get(name, 0))

    monkeypatch.setattr(driver, "prepare", prepare)
    monkeypatch.setattr(driver.subprocess, "run", run)
    return world


def test_what_is_up_to_date_is_skipped(stages, capsys):
    assert run_goal(Goal("grpo"), Overrides()).name == "run_001"
    assert stages.commands == []
    assert capsys.readouterr().out.count("up to date") == len(Goal("grpo").steps())


@pytest.mark.parametrize("status", ["missing", "interrupted", "stale: config.algo.beta: 0 -> 1"])
def test_what_is_not_up_to_date_runs(stages, capsys, status):
    """A stage that holds other work runs too, and itself refuses to overwrite it."""
    stages.statuses = {"06_grpo": status}
    run_goal(Goal("grpo"), Overrides(shared=["--seed", "1"], steps={"grpo": ["--beta", "1"]}))
    assert stages.commands == [("06_train_grpo.py", ["--seed", "1", "--beta", "1"])]
    assert f"[6/10] 06_grpo: 06_train_grpo.py ({status.split(':')[0]})" in capsys.readouterr().out


@pytest.mark.parametrize(("status", "again"), [("stale: inputs", True), ("missing", False)])
def test_a_comparison_is_redone_when_what_it_compares_changes(stages, status, again):
    stages.statuses = {"11_comparison": status}
    run_goal(Goal("grpo"), Overrides())
    [(name, words)] = stages.commands
    assert name == "11_compare_runs.py" and ("--overwrite" in words) == again


def test_overwrite_redoes_everything(stages):
    run_goal(Goal("grpo"), Overrides(), overwrite=True)
    assert [name for name, _ in stages.commands] == [step.script for step in Goal("grpo").steps()]
    assert all(words[-1] == "--overwrite" for _, words in stages.commands)


@pytest.mark.parametrize(("code", "exit_code"), [(1, 1), (2, 2), (130, 130), (-9, 1)])
def test_a_failed_stage_ends_the_run_with_its_code(stages, capsys, code, exit_code):
    stages.statuses = {"03_sft": "missing", "06_grpo": "missing"}
    stages.codes = {"03_sft_train.py": code}
    with pytest.raises(SystemExit) as caught:
        run_goal(Goal("grpo"), Overrides())
    assert caught.value.code == exit_code
    assert [name for name, _ in stages.commands] == ["03_sft_train.py"]
    assert f"03_sft_train.py failed (exit code {code})" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------- command line


def run_script(*argv: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(REPO_ROOT / "12_driver.py"), *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_help_names_methods_owners_and_exit_codes():
    done = run_script("--help")
    assert done.returncode == 0
    for words in ("--method {sft,ppo,grpo}", "--OWNER.KEY", "reads", "writes", "run_manifest.json", "130"):
        assert words in done.stdout, words


def test_mistakes_end_with_2_and_one_line(tmp_path):
    done = run_script("--output_dir", str(tmp_path), "--method", "grpo", "--grop.beta", "1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: unknown option --grop.beta") and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (UserError("no good"), 2, "error: no good"),
        (KeyboardInterrupt(), 130, "error: interrupted; run the same command again to resume"),
    ],
)
def test_exit_codes(monkeypatch, capsys, raised, code, message):
    def fail(*_):
        raise raised

    monkeypatch.setattr(SCRIPT, "run_goal", fail)
    assert SCRIPT.main([]) == code
    assert capsys.readouterr().err.strip() == message


def test_a_stages_mistake_is_found_before_anything_runs_it(tmp_path):
    """A wrong value for a stage whose turn it is: the driver says which, and leaves no traceback."""
    done = run_script("--output_dir", str(tmp_path), "--check.error_threshold", "many")
    assert done.returncode == 2
    assert "error_threshold" in done.stderr and "Traceback" not in done.stderr
