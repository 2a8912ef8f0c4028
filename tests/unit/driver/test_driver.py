"""The driver's command line: methods and their steps, where options go, mistakes and exit codes."""

import subprocess
import sys

import pytest

from tests.support.driver import drive, parse
from utils.driver import goal
from utils.driver.goal import COMPARE, Goal, Overrides, Step
from utils.driver.graph import build_graph
from utils.frame.files import REPO_ROOT, UserError
from utils.frame.pipeline import FAMILIES, METHODS
from utils.frame.repair_command import command_for
from utils.frame.stage_plan import load_script, prepare

SCRIPT = load_script("12_driver.py")
SAMPLING = ("distill", "ppo", "grpo", "rloo", "dpo")


def step(method: str, name: str) -> Step:
    return next(step for step in [*Goal((method,)).steps(), COMPARE] if step.name == name)


def routed(*argv: str, method: str = "grpo") -> dict[str, list[str]]:
    """The words each step gets, but for the run's and the seed's."""
    known, wanted, overrides = parse(*argv, "--method", method)
    return {
        node.step.id: [
            word for word in node.argv if word not in ("--run_id", known.run_id, "--seed", str(known.seed))
        ]
        for node in build_graph(wanted, overrides, known.run_id, known.seed)
    }


# --------------------------------------------------------------------------------------------- methods


def test_the_steps_of_a_method_in_order():
    """From raw data to a comparison of the policies that the method made and started from."""
    nodes = build_graph(Goal(("grpo",)), Overrides(), "run_001", 0)
    assert [(node.step.script[:2], node.step.id) for node in nodes] == [
        ("00", "check"),
        ("01", "prepare"),
        ("02", "rewards"),
        ("03", "sft"),
        ("04", "candidates"),
        ("06", "grpo"),
        ("10", "evaluate base"),
        ("10", "evaluate sft"),
        ("10", "evaluate grpo"),
        ("11", "compare"),
    ]


def test_all_methods_share_their_steps():
    steps = [step.id for step in Goal(FAMILIES).steps()]
    assert steps == [
        *("check", "prepare", "rewards", "sft", "distill", "candidates"),
        *("ppo", "grpo", "rloo", "preferences", "dpo"),
        *(f"evaluate {policy}" for policy in ("base", "sft", "distill", "ppo", "grpo", "rloo", "dpo")),
    ]


def test_every_step_comes_after_what_it_needs():
    steps = Goal(FAMILIES).steps()
    for position, each in enumerate(steps):
        assert set(each.needs) <= {before.id for before in steps[:position]}, each
    needs = {each.id: each.needs for each in steps}
    assert needs["dpo"] == ("preferences",) and needs["preferences"] == ("candidates",)
    assert needs["distill"] == needs["ppo"] == ("sft",)
    assert needs["evaluate base"] == ("rewards",)  # which does not wait for any training
    assert needs["evaluate rloo"] == ("rloo",)


@pytest.mark.parametrize(
    ("words", "methods"),
    [
        (["dpo", "ppo"], ("ppo", "dpo")),
        (["rloo,grpo", "sft"], ("sft", "grpo", "rloo")),
        (["all"], ("sft", "distill", "ppo", "grpo", "rloo", "dpo")),
        (["ppo", "all"], ("sft", "distill", "ppo", "grpo", "rloo", "dpo")),
        (["ppo", "distill"], ("distill", "ppo")),
        (["ppo", "ppo"], ("ppo",)),
    ],
)
def test_methods_are_words_or_a_list(words, methods):
    assert goal.named("method", words, FAMILIES) == methods


@pytest.mark.parametrize(("words", "message"), [(["pop"], 'no "pop".*"?ppo"?'), ([","], "needs one")])
def test_a_method_that_is_none(words, message):
    with pytest.raises(UserError, match=message):
        goal.named("method", words, METHODS)


@pytest.mark.parametrize("method", ["ppo", "grpo", "rloo", "dpo"])
@pytest.mark.parametrize("reward", [None, "combined", "task", "intrinsic"])
def test_a_reward_that_is_not_the_default_names_the_policy(method, reward, tmp_path):
    """The folder that the training stage writes is the one that the evaluation reads."""
    wanted = Goal((method,), reward)
    policy = method if reward in (None, "combined") else f"{method}_{reward}"
    assert wanted.trained() == ["sft", policy]
    nodes = {node.step.id: node for node in build_graph(wanted, Overrides(), "r", 0)}
    trains = nodes[method]
    prepared = prepare(load_script(trains.step.script).STAGE, list(trains.argv))
    number = {"ppo": "05", "grpo": "06", "rloo": "07", "dpo": "09"}[method]
    assert prepared.out.name == f"{number}_{policy}"
    assert "--reward" not in nodes["candidates"].argv  # one set of candidates serves all rewards


def test_a_reward_goes_to_preferences_too():
    words = {step.id: step.arguments for step in Goal(("dpo",), "task").steps()}
    assert words["preferences"] == words["dpo"] == ("--reward", "task")


def test_a_reward_passes_by_methods_that_have_none():
    assert Goal(("sft", "distill", "ppo"), "task").trained() == ["sft", "distill", "ppo_task"]
    words = {step.id: step.arguments for step in Goal(("sft", "distill", "ppo"), "task").steps()}
    assert words["sft"] == () and words["distill"] == ("--objective", "distill")


@pytest.mark.parametrize(
    ("folder", "options"),
    [
        ("05_ppo", ""),
        ("05_ppo_intrinsic", " --reward intrinsic"),
        ("06_grpo_task", " --reward task"),
        ("02_rewards_audit", " --audit"),
        ("06_grpo_sec", " --curriculum sec"),
        ("06_grpo_task_hard_to_easy", " --reward task --curriculum hard_to_easy"),
        ("05_ppo_intrinsic_pass_rate", " --reward intrinsic --curriculum pass_rate"),
        ("03_distill", " --objective distill"),
        ("03_distill_easy_to_hard", " --objective distill --curriculum easy_to_hard"),
    ],
)
def test_the_command_that_makes_a_variants_folder(folder, options, tmp_path):
    """What an error about a missing input tells to run writes the folder that is missing."""
    words = command_for(tmp_path / "run_001" / folder).split()
    places = ["--outputs_root", str(tmp_path)]
    assert words[2:] == ["--run_id", "run_001", *options.split(), *places]
    argv = words[2:]
    assert prepare(load_script(words[1]).STAGE, argv).out.name == folder


def test_a_folder_of_an_unknown_variant_is_its_scripts():
    run = REPO_ROOT / "outputs" / "r"
    assert command_for(run / "03_sft_mine") == "python 03_sft_train.py --run_id r"
    assert command_for(run / "06_grpo_mine") == "python 06_train_grpo.py --run_id r"


def test_a_reward_that_a_method_has_not_is_one_line():
    with pytest.raises(UserError, match="--reward task does not go with --method sft: .* pays no reward"):
        Goal(("sft",), "task").steps()
    with pytest.raises(UserError, match="--reward gold .* choose from combined, task, intrinsic"):
        Goal(("ppo",), "gold").steps()


@pytest.mark.parametrize("method", METHODS)
def test_every_step_is_a_script_that_takes_its_arguments(method, tmp_path):
    overrides = Overrides(shared=["--outputs_root", str(tmp_path)])
    for node in build_graph(Goal((method,)), overrides, "run_001", 0):
        prepared = prepare(load_script(node.step.script).STAGE, list(node.argv))
        assert prepared.status == "missing" and prepared.run_dir == tmp_path / "run_001"


# --------------------------------------------------------------------------------------------- options


def test_options_of_a_step_go_to_it_alone():
    words = routed("--grpo.num_iterations", "1", "--sft.learning_rate=1e-4", "--compare.policies", "sft")
    assert words["grpo"] == ["--num_iterations", "1"]
    assert words["sft"] == ["--learning_rate", "1e-4"]
    assert words["compare"] == ["--policies", "sft"]
    assert words["check"] == words["candidates"] == []
    assert words["evaluate sft"] == ["--policy", "sft"]


def test_every_step_of_dpo_is_an_owner():
    words = routed("--preferences.min_pairs", "3", "--dpo.beta", "0.2", method="dpo")
    assert words["dpo"] == ["--beta", "0.2"] and words["preferences"] == ["--min_pairs", "3"]
    assert words["candidates"] == []


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


def test_a_model_by_name_goes_to_every_stage_that_has_models():
    words = routed("--model", "smollm2-135m", "--model.lora.r", "8")
    assert words["grpo"] == ["--model", "smollm2-135m", "--model.lora.r", "8"]
    assert words["check"] == []


def test_options_of_all_stages_go_everywhere(tmp_path):
    known, wanted, overrides = parse(
        *(
            "--method",
            "all",
            "--run_id",
            "mine",
            "--seed",
            "7",
            "--outputs_root",
            str(tmp_path),
            "--quick_test",
        )
    )
    for node in build_graph(wanted, overrides, known.run_id, known.seed):
        prepared = prepare(load_script(node.step.script).STAGE, list(node.argv))
        assert prepared.run_dir == tmp_path / "mine"
        assert prepared.config.seed == 7 and prepared.config.quick_test


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--grop.num_iterations", "2"], "unknown option --grop.num_iterations.*'?grpo'?"),
        (["--modl.lora.r", "2"], "unknown option --modl.lora.r.*'?model'?"),
        (["--lerning_rat", "2"], "unknown option --lerning_rat.*--OWNER.KEY VALUE"),
        (["--grpo"], "unknown option --grpo"),
        (["stray"], "'stray' belongs to no option|there is no"),
        (["--seed", "0", "--seeds", "0", "1"], "--seed for one run or --seeds"),
        (["--seeds", "0", "0"], "names a seed twice"),
        (["--seeds", "0", "one"], "--seeds must be a whole number from 0 on, found 'one'"),
        (["--seed", "-1"], "--seed must be"),
        (["--jobs", "0"], "--jobs must be a whole number from 1 on"),
        (["--completions", "many"], "--completions must be"),
        (["--grpo.reward", "task"], "give --reward to the driver"),
        (["--grpo.curriculum", "sec"], "give --curriculum to the driver"),
        (["--sft.objective", "distill"], "name what to train by --method: sft, distill"),
    ],
)
def test_an_option_that_cannot_be_is_one_line(argv, message):
    with pytest.raises(UserError, match=message) as caught:
        parse("--method", "grpo", *argv)
    assert "\n" not in str(caught.value)


def test_the_candidates_reward_is_their_own():
    assert routed("--candidates.reward", "task")["candidates"] == ["--reward", "task"]


def test_a_step_of_another_method_is_no_owner():
    with pytest.raises(UserError, match="unknown option --grpo.beta"):
        parse("--method", "sft", "--grpo.beta", "0.1")


def test_jobs(monkeypatch):
    """Two on two cores without a GPU, where a step is one process."""
    from utils.driver import execution

    monkeypatch.setattr(execution, "cores", lambda: 4)
    monkeypatch.setattr(execution, "device_kind", lambda torch: "cpu")
    assert parse("--method", "ppo")[0].jobs == 2
    assert parse("--method", "ppo", "--seeds", "3,4")[0].jobs == 2
    ddp = ["--accelerate_config", "configs/accelerate/ddp.yaml", "--num_processes", "2"]
    assert parse("--method", "ppo", *ddp)[0].jobs == 1
    assert parse("--method", "all", "--jobs", "3")[0].jobs == 3
    monkeypatch.setattr(execution, "device_kind", lambda torch: "cuda")
    assert parse("--method", "all")[0].jobs == 1
    monkeypatch.setattr(execution, "device_kind", lambda torch: "cpu")
    monkeypatch.setattr(execution, "cores", lambda: 1)
    assert parse("--method", "all")[0].jobs == 1


# ---------------------------------------------------------------------------------------- command line


def test_help_names_methods_owners_and_exit_codes():
    words = [sys.executable, str(REPO_ROOT / "12_driver.py"), "--help"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0
    for words in (
        "sft, distill, ppo, grpo, rloo",
        "--OWNER.KEY",
        "reads",
        "writes",
        "run_manifest.json",
        "130",
    ):
        assert words in done.stdout, words
    for name in ("preferences", "OMP_NUM_THREADS", "--dry_run", "_seed_<s>", "--completions"):
        assert name in done.stdout, name


def test_mistakes_end_with_2_and_one_line(tmp_path, capsys):
    code, out, err = drive(capsys, "--outputs_root", str(tmp_path), "--method", "grpo", "--grop.beta", "1")
    assert (code, out) == (2, "")
    assert err.startswith("error: unknown option --grop.beta") and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_stages_mistake_is_found_before_anything_runs(tmp_path, capsys):
    """A wrong value for the last stage: no stage has run for it."""
    code, out, err = drive(capsys, "--outputs_root", str(tmp_path), "--evaluate.max_items", "many")
    assert (code, out) == (2, "")
    assert "10_evaluate.py" in err and "max_items" in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_unequal_budgets_end_before_anything_runs(tmp_path, capsys):
    words = ("--outputs_root", str(tmp_path), "--method", "ppo", "grpo", "--ppo.num_rollouts", "1")
    code, out, err = drive(capsys, *words)
    assert (code, out) == (2, "")
    assert "ppo 128, grpo 8192" in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_says_all_and_does_nothing(tmp_path, capsys):
    code, out, err = drive(
        capsys,
        *("--outputs_root", str(tmp_path / "out"), "--method", "all", "--seeds", "4", "5", "--jobs", "2"),
        *("--run_id", "mine", "--dry_run", "--quick_test"),
    )
    assert (code, err) == (0, "")
    lines = out.splitlines()
    for method in SAMPLING:
        assert f"budget of {method}: 64 completions of 8 prompts" in lines
    assert "[5/39] mine_seed_4/03_distill: 03_sft_train.py (missing)" in lines
    assert "[9/39] mine_seed_4/07_rloo: 07_train_rloo.py (missing)" in lines
    assert lines[-2].startswith("[39/39] mine/11_comparison: 11_compare_runs.py")
    assert sum(line.startswith("[") for line in lines) == 39
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (UserError("no good"), 2, "error: no good"),
        (KeyboardInterrupt(), 130, "error: interrupted; run the same command again to resume"),
        (KeyboardInterrupt("SIGTERM"), 143, "error: interrupted; run the same command again to resume"),
    ],
)
def test_exit_codes(monkeypatch, capsys, raised, code, message):
    def fail(*_):
        raise raised

    monkeypatch.setattr(SCRIPT, "drive", fail)
    assert SCRIPT.main([]) == code
    assert capsys.readouterr().err.strip() == message
