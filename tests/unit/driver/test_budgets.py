"""Every method of a comparison learns from as many completions of as many prompts, or nothing runs."""

from pathlib import Path

import pytest

from tests.support.driver import budgets, parse
from utils.driver.budget import set_completions
from utils.driver.graph import build_graph
from utils.frame.files import UserError, write_json

SAMPLING = ("distill", "ppo", "grpo", "rloo", "dpo")


@pytest.mark.parametrize("size", [[], ["--quick_test"]])
def test_the_budgets_as_shipped_are_equal(size, tmp_path):
    found = budgets("--method", "all", "--outputs_root", str(tmp_path), *size)
    assert list(found) == list(SAMPLING)
    assert {(each.completions, each.prompts) for each in found.values()} == (
        {(64, 8)} if size else {(8192, 1024)}
    )


def test_unequal_budgets_are_refused(tmp_path):
    at = ["--outputs_root", str(tmp_path)]
    with pytest.raises(UserError, match=r"ppo 8192, grpo 4096.*--completions N") as caught:
        budgets("--method", "ppo", "grpo", "--grpo.num_rollouts", "32", *at)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"rloo 8192, dpo 800\b"):
        budgets("--method", "rloo", "dpo", "--candidates.max_items", "100", *at)
    assert budgets("--method", "sft", "grpo", "--grpo.num_rollouts", "32", *at)["grpo"].completions == 4096


GOLD = ["--distill.on_policy_fraction", "0", "--distill.num_generations", "1"]


@pytest.mark.parametrize(("fraction", "gold"), [("0", 8192), ("0.25", 6144)])
def test_gold_text_counts_as_a_completion(fraction, gold, tmp_path):
    """Of a prompt there is one gold text: as many completions, of more prompts."""
    argv = ["--distill.on_policy_fraction", fraction, *GOLD[2:], "--outputs_root", str(tmp_path)]
    found = budgets("--method", "distill", "grpo", "dpo", *argv)
    assert {each.completions for each in found.values()} == {8192}
    assert (found["distill"].prompts, found["distill"].gold) == (8192, gold)
    assert str(found["distill"]).endswith(f"of 8192 prompts, {gold} of them gold")
    with pytest.raises(UserError, match="distill 8192, grpo 4096"):
        budgets("--method", "distill", "grpo", *argv, "--grpo.num_rollouts", "32")


def test_groups_of_one_are_other_prompts_where_all_are_sampled(tmp_path):
    argv = ["--distill.num_generations", "1", "--outputs_root", str(tmp_path)]
    with pytest.raises(UserError, match=r"per prompt \(distill 1, ppo 8\).*--distill.num_generations"):
        budgets("--method", "distill", "ppo", *argv)


def test_groups_of_another_size_are_other_prompts(tmp_path):
    with pytest.raises(UserError, match=r"per prompt \(ppo 8, grpo 4\).*--grpo.num_generations"):
        budgets("--method", "ppo", "grpo", "--grpo.num_generations", "4", "--outputs_root", str(tmp_path))


def test_candidates_of_another_split_are_other_prompts(tmp_path):
    argv = ["--candidates.split", "val", "--outputs_root", str(tmp_path)]
    with pytest.raises(UserError, match="--candidates.split is val"):
        budgets("--method", "ppo", "dpo", *argv)
    budgets("--method", "ppo", *argv)  # where nothing learns from candidates it is nobody's budget


def prepared_data(folder: Path, prompts: int) -> None:
    """A run in which 01 has finished."""
    write_json(
        folder / "r" / "01_preprocessing" / "manifest.json",
        {"outputs": {"01_preprocessing/train.jsonl": {"rows": prompts, "sha256": "0" * 64}}},
    )


def test_all_prompts_are_counted_once_the_data_is_prepared(tmp_path):
    argv = ["--method", "ppo", "dpo", "--candidates.max_items", "null", "--outputs_root", str(tmp_path)]
    with pytest.raises(UserError, match="known only when 01 has run.*--completions N"):
        budgets(*argv)
    prepared_data(tmp_path, 1024)
    assert budgets(*argv)["dpo"].completions == 8192
    prepared_data(tmp_path, 1000)
    with pytest.raises(UserError, match="ppo 8192, dpo 8000"):
        budgets(*argv)


def test_no_more_candidates_than_prompts(tmp_path):
    """Trainers draw a prompt again in the next epoch; 04 asks each once."""
    argv = ["--method", "ppo", "dpo", "--outputs_root", str(tmp_path)]
    assert budgets(*argv)["dpo"].prompts == 1024
    prepared_data(tmp_path, 500)
    with pytest.raises(UserError, match=r"ppo 8192, dpo 4000; the train split has 500 prompts"):
        budgets(*argv)
    assert budgets("--method", "dpo", "--outputs_root", str(tmp_path))["dpo"].completions == 4000


def test_the_check_after_preparation_stops_candidates_alone(tmp_path):
    """A driver that prepares the data itself learns only then how many prompts there are."""
    _, wanted, overrides = parse("--method", "ppo", "dpo", "--outputs_root", str(tmp_path))
    nodes = {node.step.id: node for node in build_graph(wanted, overrides, "r", 0)}
    assert [name for name, node in nodes.items() if node.check] == ["rewards", "candidates"]
    nodes["candidates"].check()
    prepared_data(tmp_path, 500)
    with pytest.raises(UserError, match="the train split has 500 prompts"):
        nodes["candidates"].check()


def test_completions_set_every_method(tmp_path):
    found = budgets("--method", "all", "--completions", "1024", "--outputs_root", str(tmp_path))
    assert {(each.completions, each.prompts) for each in found.values()} == {(1024, 128)}
    found = budgets(
        "--method", "distill", "ppo", "--completions", "1024", *GOLD, "--outputs_root", str(tmp_path)
    )
    assert (found["distill"].completions, found["distill"].gold) == (1024, 1024)
    known, wanted, overrides = parse("--method", "ppo", "--completions", "1024")
    set_completions(known.completions, wanted, overrides, "r", 0)
    assert overrides.budget == {"ppo": ["--algo.num_rollouts", "8"], "candidates": ["--max_items", "128"]}


@pytest.mark.parametrize(("asked", "nearest"), [(1000, 1024), (1, 128), (1100, 1152)])
def test_completions_that_do_not_divide(asked, nearest):
    with pytest.raises(UserError, match=rf"--completions {asked} .*ppo 128.*nearest that does is {nearest}$"):
        budgets("--method", "ppo", "dpo", "--completions", str(asked))


def test_completions_against_an_option_that_sets_the_same():
    with pytest.raises(UserError, match="sets algo.num_rollouts of ppo.*leave one of the two out"):
        budgets("--method", "ppo", "--completions", "1024", "--ppo.num_rollouts", "4")
    with pytest.raises(UserError, match="--completions goes with a method that samples"):
        budgets("--method", "sft", "--completions", "1024")
