"""Options without an owner, an algorithm's file, and a policy to start from, given to the driver."""

import pytest

from tests.support.driver import drive, parse
from utils.driver.goal import Goal, Overrides
from utils.driver.graph import build_graph
from utils.frame.files import UserError


def words(*argv: str) -> dict[str, tuple[str, ...]]:
    """Step -> its command line."""
    known, goal, overrides = parse(*argv)
    return {step.id: tuple(overrides.argv(step, "r", 0)) for step in goal.steps()}


def has(argv: tuple[str, ...], option: str, value: str) -> bool:
    return any(pair == (option, value) for pair in zip(argv, argv[1:], strict=False))


def test_a_bare_option_reaches_the_steps_that_have_it():
    steps = words("--method", "ppo", "grpo", "--kl_coef", "0.1", "--num_candidates", "4")
    assert has(steps["ppo"], "--algo.kl_coef", "0.1") and has(steps["grpo"], "--algo.beta", "0.1")
    assert has(steps["candidates"], "--num_candidates", "4")
    assert not any("beta" in word or "kl_coef" in word for word in steps["sft"])
    steps = words("--method", "ppo", "dpo", "--learning_rate", "1e-5")
    reached = [name for name in steps if has(steps[name], "--algo.learning_rate", "1e-5")]
    assert reached == ["sft", "ppo", "dpo"]


def test_a_key_of_a_tier_goes_to_every_step_that_has_it():
    steps = words("--method", "ppo", "--data_root", "x", "--batch_size", "auto", "--load_in_4bit", "--bf16")
    for name in ("check", "prepare", "evaluate base"):
        assert has(steps[name], "--dataset.data_root", "x")
    for name in ("sft", "ppo", "evaluate sft"):
        assert has(steps[name], "--model.generation.batch_size", "auto")
        assert has(steps[name], "--model.model.torch_dtype", "bfloat16")
        assert "--model.model.load_in_4bit" in steps[name]


@pytest.mark.parametrize(
    ("argv", "homes"),
    [
        (["--epochs", "3"], ["--sft.num_train_epochs", "--ppo.num_ppo_epochs"]),
        (["--max_items", "3"], ["--candidates.max_items", "--evaluate.max_items"]),
        (["--batch_size", "3"], ["--sft.per_device_train_batch_size", "--ppo.rollout_batch_size"]),
        (["--method", "grpo", "dpo", "--beta", "0.1"], ["--grpo.beta", "--dpo.beta"]),
        (["--skip_validation"], ["--validation.num_items 0", "--error_threshold 1"]),
        (["--use_batch_bonus"], ["--reward.intrinsic.scope"]),
        (["--resume_from_checkpoint", "x/step_4"], ["--policy_ckpt"]),
        (["--output_dir", "outputs/run_002"], ["--outputs_root outputs --run_id run_002"]),
        (["--config", "configs/algorithms/ppo.yaml"], ["--algo_config"]),
        (["--lerning_rate", "1"], ["unknown option"]),
    ],
)
def test_what_means_two_things_or_nothing_is_one_line(capsys, argv, homes):
    code, _, err = drive(capsys, *argv)
    assert code == 2 and err.count("\n") == 1
    for home in homes:
        assert home in err


def test_an_algorithms_file_goes_to_its_method(tmp_path):
    steps = words("--method", "ppo", "grpo", "--algo_config", "configs/algorithms/grpo.yaml")
    assert "--algo_config" in steps["grpo"] and not {"--algo_config"} & {*steps["ppo"], *steps["sft"]}
    mine = tmp_path / "mine.yaml"
    mine.write_text("ppo_epochs: 1\nvf_coef: 0.2\n")
    steps = words("--method", "ppo", "grpo", "--algo_config", str(mine))
    assert has(steps["ppo"], "--algo_config", str(mine)) and "--algo_config" not in steps["grpo"]
    mine.write_text("learning_rate: 1e-5\n")
    with pytest.raises(UserError, match="could be for ppo, grpo: give it to one, such as --ppo.algo_config"):
        words("--method", "ppo", "grpo", "--algo_config", str(mine))


def test_a_run_from_the_base_model_has_no_sft():
    goal = Goal(("grpo", "dpo"), start="base")
    nodes = {node.step.id: node for node in build_graph(goal, Overrides(), "r", 0)}
    assert "sft" not in nodes and "evaluate sft" not in nodes and "evaluate base" in nodes
    for name in ("candidates", "grpo", "preferences", "dpo"):
        assert has(nodes[name].argv, "--policy_ckpt", "base")
    assert nodes["grpo"].needs == (("r", "rewards"),) and nodes["dpo"].needs == (("r", "preferences"),)


def test_a_run_from_another_runs_policy_evaluates_that_too(tmp_path):
    goal = Goal(("grpo",), start=str(tmp_path / "03_sft"))
    nodes = {node.step.id: node for node in build_graph(goal, Overrides(), "r", 0)}
    assert has(nodes["evaluate start"].argv, "--policy_ckpt", str(tmp_path / "03_sft"))
    assert "evaluate sft" not in nodes
