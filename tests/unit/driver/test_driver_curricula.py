"""Methods under several curricula: their steps, names, options and budgets, and what is compared."""

from pathlib import Path

import pytest

from tests.support.driver import budgets, drive, executed, options, parse
from utils.driver.goal import Goal, Overrides, named
from utils.driver.graph import build_graph
from utils.evaluation.policy_names import checkpoint_of
from utils.frame.files import UserError
from utils.frame.pipeline import CURRICULA, METHODS
from utils.frame.stage_plan import load_script, prepare
from utils.models.settings import ModelConfig, ModelSection

FOLLOWING = ("distill", "ppo", "grpo", "rloo")


def trainings(goal: Goal) -> dict[str, tuple[str, ...]]:
    """Step id -> arguments, of the trainings alone."""
    return {step.id: step.arguments for step in goal.steps() if step.name in METHODS}


def test_a_method_is_trained_under_each_curriculum():
    goal = Goal(("sft", "distill", "grpo"), None, ("random", "easy_to_hard", "sec"))
    assert trainings(goal) == {
        "sft": (),
        "distill": ("--objective", "distill", "--curriculum", "random"),
        "distill easy_to_hard": ("--objective", "distill", "--curriculum", "easy_to_hard"),
        "distill sec": ("--objective", "distill", "--curriculum", "sec"),
        "grpo": ("--curriculum", "random"),
        "grpo easy_to_hard": ("--curriculum", "easy_to_hard"),
        "grpo sec": ("--curriculum", "sec"),
    }
    assert goal.trained() == [
        *("sft", "distill", "distill_easy_to_hard", "distill_sec"),
        *("grpo", "grpo_easy_to_hard", "grpo_sec"),
    ]
    needs = {step.policy: step.needs for step in goal.steps() if step.policy}
    assert needs["grpo_sec"] == ("grpo sec",) and needs["grpo"] == ("grpo",)
    assert needs["distill_easy_to_hard"] == ("distill easy_to_hard",)


def test_steps_are_told_apart_and_come_after_what_they_need():
    steps = Goal(tuple(METHODS), "task", CURRICULA).steps()
    ids = [step.id for step in steps]
    assert len(set(ids)) == len(ids)
    for position, step in enumerate(steps):
        assert set(step.needs) <= set(ids[:position]), step


@pytest.mark.parametrize("method", FOLLOWING)
@pytest.mark.parametrize("reward", [None, "task"])
def test_what_a_variant_writes_is_what_its_evaluation_reads(method, reward, tmp_path):
    goal = Goal((method, "sft"), None if method == "distill" else reward, CURRICULA)
    model = ModelConfig(model=ModelSection(name_or_path="assets/student", teacher_name_or_path="x/y"))
    for policy, step in goal.variants(method).items():
        argv = [*step.arguments, "--run_id", "r", "--outputs_root", str(tmp_path)]
        prepared = prepare(load_script(step.script).STAGE, argv)
        assert checkpoint_of(policy, "", model, prepared.run_dir) == prepared.out / f"ckpt_{method}" / "best"


def test_the_default_curriculum_named_is_the_plain_training(tmp_path):
    [plain] = Goal(("grpo",)).variants("grpo").values()
    [named] = Goal(("grpo",), None, ("random",)).variants("grpo").values()
    argv = ["--run_id", "r", "--outputs_root", str(tmp_path)]
    stage = load_script("06_train_grpo.py").STAGE
    a, b = (prepare(stage, [*step.arguments, *argv]) for step in (plain, named))
    assert (a.out, a.config.to_dict(a.run_dir)) == (b.out, b.config.to_dict(b.run_dir))
    assert plain.id == named.id == "grpo"


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["all"], CURRICULA),
        (["sec,random"], ("random", "sec")),
        (["hard_to_easy", "easy_to_hard"], ("easy_to_hard", "hard_to_easy")),
        (["sec", "sec"], ("sec",)),
    ],
)
def test_curricula_are_words_or_a_list(words, names):
    assert named("curriculum", words, CURRICULA) == names


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--curriculum", "secc"], 'no "secc".*"?sec"?'),
        (["--curriculum", ","], "--curriculum needs one or several of random, easy_to_hard"),
        (["--curriculum", "sec", "--grpo.curriculum", "random"], "give --curriculum to the driver"),
        (["--method", "sft", "dpo", "--curriculum", "sec", "--sft.max_steps", "1"], "does not go with"),
    ],
)
def test_a_curriculum_that_cannot_be_is_one_line(argv, message):
    with pytest.raises(UserError, match=message) as caught:
        parse("--method", "grpo", *argv)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("methods", [("sft",), ("dpo",), ("sft", "dpo")])
def test_a_goal_without_a_method_that_follows_curricula(methods):
    with pytest.raises(UserError, match="--curriculum sec .* followed by distill, ppo, grpo, rloo"):
        Goal(methods, None, ("random", "sec")).steps()
    assert Goal(methods, None, ("random",)).trained() == list(dict.fromkeys(("sft", *methods)))
    Goal(methods, None, ("random",)).steps()


def test_methods_without_curricula_run_once_beside_the_others():
    goal = Goal(("sft", "grpo", "dpo"), None, ("random", "sec"))
    assert goal.trained() == ["sft", "grpo", "grpo_sec", "dpo"]
    assert goal.unordered() == ["sft", "dpo"] and Goal(("sft", "grpo")).unordered() == []


def words_of(*argv: str, method: str = "grpo") -> dict[str, tuple[str, ...]]:
    known, goal, overrides = parse(*argv, "--method", method)
    return {node.step.id: node.argv for node in build_graph(goal, overrides, known.run_id, known.seed)}


def test_options_of_a_step_go_to_all_its_variants():
    words = words_of("--curriculum", "random", "sec", "--grpo.beta", "0.1", "--sft.max_steps", "3")
    for step in ("grpo", "grpo sec"):
        assert words[step][-2:] == ("--beta", "0.1"), step
    assert "--beta" not in words["sft"] and words["sft"][-2:] == ("--max_steps", "3")


def test_settings_of_a_curriculum_are_options_of_the_step(tmp_path):
    argv = words_of("--curriculum", "sec", "--grpo.curriculum.tau", "0.25")["grpo sec"]
    prepared = prepare(load_script("06_train_grpo.py").STAGE, [*argv, "--outputs_root", str(tmp_path)])
    assert prepared.config.algo.curriculum.tau == 0.25 and prepared.out.name == "06_grpo_sec"


def test_variants_have_one_budget(tmp_path):
    at = ["--outputs_root", str(tmp_path), "--curriculum", "all"]
    found = budgets("--method", "all", *at)
    assert {(each.completions, each.prompts) for each in found.values()} == {(8192, 1024)}
    known, goal, overrides = parse("--method", "distill", "rloo", "--completions", "1024", *at)
    from utils.driver.budget import set_completions

    set_completions(known.completions, goal, overrides, "r", 0)
    for node in build_graph(goal, overrides, "r", 0):
        if node.step.name in ("distill", "rloo"):
            prepared = prepare(load_script(node.step.script).STAGE, list(node.argv))
            assert prepared.config.algo.num_rollouts == 8, node.step.id


def test_distillation_from_the_base_model_does_not_wait_for_sft():
    def needs(*argv):
        _, goal, overrides = parse("--method", "distill", "--curriculum", "random", "sec", *argv)
        nodes = {node.step.id: node.needs for node in build_graph(goal, overrides, "r", 0)}
        return {nodes["distill"], nodes["distill sec"]}

    assert needs() == {(("r", "sft"),)}
    assert needs("--distill.start", "base") == {(("r", "rewards"),)}


def test_every_variant_is_evaluated_and_compared(stages):
    goal = Goal(("distill", "ppo"), None, ("random", "sec"))
    executed(goal, seeds=(0, 1))
    policies = "distill, distill_sec, ppo, ppo_sec"
    compared = [options(words)["--policies"] for name, words in stages.commands if name[:2] == "11"]
    assert compared == [f"[base, sft, {policies}]"] * 2 + [f"[sft, {policies}]"]
    trained = [
        words for name, words in stages.commands if name[:2] in ("03", "05") and "--curriculum" in words
    ]
    assert len(trained) == 8 and len({tuple(words) for words in trained}) == 8


def test_a_failed_variant_takes_no_other_down(stages, capsys):
    stages.codes = {"06_grpo_sec": 1}
    _, outcomes = executed(Goal(("grpo", "dpo"), None, ("random", "sec", "pass_rate")))
    assert {key for key, outcome in outcomes.items() if not outcome.ok} == {
        "r/grpo sec",
        "r/evaluate grpo_sec",
    }
    given = options(stages.commands[-1][1])
    assert given["--policies"] == "[base, sft, grpo, grpo_sec, grpo_pass_rate, dpo]"
    assert stages.failed() == {"grpo_sec": ("06_grpo_sec", "06_grpo_sec: reason 1")}
    assert capsys.readouterr().err == "error: grpo_sec failed: 06_grpo_sec: reason 1\n"


def test_a_variant_that_fails_with_one_seed_is_left_out_alone(stages):
    stages.codes = {"r_seed_1/03_distill_sec": 1}
    executed(Goal(("distill",), None, ("random", "sec")), seeds=(0, 1), jobs=2)
    given = options(stages.commands[-1][1])
    assert given["--policies"] == "[sft, distill, distill_sec]" and given["--runs"] == "r_seed_0,r_seed_1"
    assert stages.failed() == {"seed_1/distill_sec": ("03_distill_sec", "03_distill_sec: reason 1")}


def test_a_dry_run_shows_the_variants(tmp_path, capsys):
    code, out, err = drive(
        capsys,
        *("--outputs_root", str(tmp_path / "out"), "--method", "distill", "sft", "grpo", "--reward", "task"),
        *("--curriculum", "random", "sec", "--dry_run"),
    )
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "trained once, without a curriculum: sft"
    shown = [line.split()[1].rstrip(":") for line in lines if line.startswith("[")]
    assert shown[3:9] == [
        *("03_sft", "03_distill", "03_distill_sec", "04_candidates"),
        *("06_grpo_task", "06_grpo_task_sec"),
    ]
    assert [Path(name).name for name in shown[9:-1]] == [
        *("base", "sft", "distill", "distill_sec", "grpo_task", "grpo_task_sec"),
    ]
    assert not (tmp_path / "out").exists()


def test_no_override_names_a_variant():
    """Options belong to a step, not to one of its variants: budgets and settings stay equal."""
    with pytest.raises(UserError, match="unknown option --grpo_sec.beta"):
        Overrides().add("grpo_sec.beta", ["1"], Goal(("grpo",), None, ("sec",)))
