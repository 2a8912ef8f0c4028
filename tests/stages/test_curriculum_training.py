"""Curricula in training: PPO, GRPO and RLOO under them, what they choose and log."""

from dataclasses import replace

import pytest
import torch

from tests.support.group_stub import PROMPTS, SIZE, group_trainer, rollout_inputs
from tests.support.training_stages import run_script, stage_context, stage_inputs, tree
from utils.curricula.build import build_curriculum
from utils.curricula.curriculum import UNKNOWN
from utils.curricula.pacing import competence, pool_size
from utils.curricula.settings import CurriculumSettings
from utils.data.records import Record
from utils.frame.config import build
from utils.frame.files import UserError, read_json, read_jsonl, write_jsonl
from utils.methods.grpo.settings import GrpoAlgo
from utils.methods.grpo.trainer import SharedPrefixGRPOTrainer
from utils.methods.ppo.settings import PpoAlgo
from utils.methods.rloo.settings import RlooAlgo
from utils.methods.rloo.trainer import SharedPrefixRLOOTrainer
from utils.rollouts.curriculum_log import LOG_FILE
from utils.rollouts.follows_curriculum import STATE_FILE
from utils.rollouts.prompt_order import prompt_order

LEVELS = [1, 2, 3, 4] * 3
SETTINGS = build(CurriculumSettings, {"tau": 0.2, "start_fraction": 0.3, "exploration": 0.3}, "here")
GROUP = {
    "num_rollouts": 5,
    "learning_rate": 2e-2,
    "warmup_steps": 0,
    "per_device_train_batch_size": 8,
    "steps_per_generation": 1,
    "num_iterations": 2,
    "curriculum": SETTINGS,
}
ALGOS = {
    "05": PpoAlgo(
        num_rollouts=5,
        learning_rate=2e-2,
        warmup_steps=0,
        rollout_batch_size=8,
        num_generations=4,
        num_ppo_epochs=1,
        num_mini_batches=2,
        curriculum=SETTINGS,
    ),
    "06": GrpoAlgo(num_generations=4, beta=0.05, **GROUP),
    "07": RlooAlgo(num_samples=4, **GROUP),
}


@pytest.fixture(scope="module")
def inputs(tiny_models, tmp_path_factory):
    """The stub's inputs with 12 training records of levels 1 to 4."""
    files = stage_inputs(tmp_path_factory.mktemp("inputs"), tiny_models("llama"))
    row = read_jsonl(files["train"])[0]
    rows = [
        row | {"id": f"train-{n}", "level": level, "input_text": f"cash {n} ?"}
        for n, level in enumerate(LEVELS)
    ]
    write_jsonl(files["train"], rows)
    return files


@pytest.fixture
def stage(inputs, tiny_models, tmp_path):
    """Runs a stage under a curriculum; returns its files and metrics."""

    def run(number, followed, name="out", **changes):
        algo = replace(ALGOS[number], **changes)
        options = {"curriculum": followed}
        ctx = stage_context(tmp_path / name, inputs, tiny_models("llama"), algo, **options)
        run_script(number, ctx)
        return tree(ctx.out), ctx.metrics

    return run


@pytest.fixture
def make(tiny_models, tmp_path):
    def build_it(kind=SharedPrefixGRPOTrainer, **changes):
        return group_trainer(kind, tiny_models("llama"), tmp_path / "out", **changes)

    return build_it


def records(levels=(1, 2, 1, 2)) -> list[Record]:
    return [Record(f"train-{n}", "sample", "q", "q", "t", "1", level=level) for n, level in enumerate(levels)]


# --------------------------------------------------------------------------------------- whole stages


@pytest.mark.parametrize(
    ("number", "curriculum"), [("05", "pass_rate"), ("06", "sec"), ("07", "hard_to_easy")]
)
def test_choices_are_those_of_the_curriculum_and_logged(stage, tmp_path, number, curriculum):
    files, metrics = stage(number, curriculum, "whole")
    rows = read_jsonl(tmp_path / "whole" / "logs" / LOG_FILE)
    assert [row["rollout"] for row in rows] == list(range(5))
    assert "logs/curriculum.png" in files
    found = metrics["curriculum"]
    assert found["left_out"] == 0 and found["prompts"] == 10
    assert sum(found["prompts_by_arm"].values()) == 10
    level = {f"train-{n}": level for n, level in enumerate(LEVELS)}
    logged = read_jsonl(tmp_path / "whole" / "logs" / "metrics.jsonl")
    assert [row["prompts/mean_level"] for row in logged if "prompts/mean_level" in row] == pytest.approx(
        [sum(level[name] for name in row["ids"]) / len(row["ids"]) for row in rows]
    )
    for row in rows:
        if curriculum == "sec":
            assert {arm: numbers["count"] for arm, numbers in row["arms"].items()} == {
                str(arm): [level[name] for name in row["ids"]].count(arm) for arm in (1, 2, 3, 4)
            }
            assert sum(numbers["probability"] for numbers in row["arms"].values()) == pytest.approx(1)
        if curriculum == "hard_to_easy":
            size = max(2, pool_size(competence(row["rollout"], 5, 0.3, 0.7), 12))
            assert row["pool"] == size
            ranked = sorted(LEVELS, reverse=True)[:size]
            assert all(level[name] in ranked for name in row["ids"])
    if curriculum == "sec":  # Q follows from the rewards in the log
        for before, after in zip(rows, rows[1:], strict=False):
            for arm, numbers in after["arms"].items():
                q = before["arms"][arm]["q"]
                assert ("reward_before" in numbers) == (before["arms"][arm]["count"] > 0)
                reward = numbers.get("reward_before", q)
                assert numbers["q"] == pytest.approx(0.5 * q + 0.5 * reward)
        assert any(numbers["q"] > 0 for numbers in rows[-1]["arms"].values())


def test_random_is_the_stock_order_and_leaves_nothing_behind(stage, make):
    trainer, seen = make(max_steps=6, num_generations=4, per_device_train_batch_size=8), []
    original = trainer._generate_and_score_completions
    trainer._generate_and_score_completions = lambda rows: (
        seen.append([row["record"] for row in rows]) or original(rows)
    )
    trainer.train()
    order = prompt_order(len(PROMPTS), trainer.args.seed)
    assert seen[:2] == [[place for place in order[at : at + 2] for _ in range(4)] for at in (0, 2)]
    files, metrics = stage("06", "random", num_rollouts=2)
    assert not [name for name in files if "curriculum" in name] and "curriculum" not in metrics
    other, _ = stage("06", "random", "again", num_rollouts=2, curriculum=CurriculumSettings())
    assert other == files  # no setting of a curriculum has any effect


# --------------------------------------------------------------------------------------------- feedback


@pytest.mark.parametrize("kind", [SharedPrefixGRPOTrainer, SharedPrefixRLOOTrainer])
@pytest.mark.parametrize("tokens", [False, True], ids=["outcome", "process"])
def test_signals_are_those_of_the_whole_rollout(make, kind, tokens):
    """Mean |advantage| over tokens of each completion, mean over completions; and the share that is right."""
    if tokens and kind is SharedPrefixRLOOTrainer:
        pytest.skip("RLOO has no advantages by token")
    trainer = make(kind, tokens=tokens)
    curriculum = build_curriculum("sec", SETTINGS, records(), seed=0, num_rollouts=4)
    curriculum.choose = lambda count: [2, 0, 3, 1][:count]
    curriculum.chosen = [2, 0, 3, 1]
    curriculum.probabilities = curriculum.q
    told, kept = [], []
    curriculum.observe = told.append
    trainer.follow(curriculum)
    assert trainer.curriculum.needs == {"abs_advantage"}
    original = trainer._generate_and_score_completions
    trainer._generate_and_score_completions = lambda rows: kept.append(rows) or original(rows)
    rollout = trainer._next_rollout(rollout_inputs())
    assert [row["record"] for row in kept[0]] == [place for place in (2, 0, 3, 1) for _ in range(SIZE)]
    assert [row["prompt"] for row in kept[0]] == [
        PROMPTS[place] for place in (2, 0, 3, 1) for _ in range(SIZE)
    ]
    expected = []
    for group in range(4):
        sizes = []
        for row in range(group * SIZE, group * SIZE + SIZE):
            mask = rollout["completion_mask"][row].bool()
            own = rollout["advantages"][row].double()
            sizes.append((own.abs() if own.ndim == 0 else own[mask].abs().mean()).item())
        expected.append(sum(sizes) / SIZE)
    assert told[0] == {"abs_advantage": pytest.approx(expected, rel=1e-6)} and max(expected) > 0
    del trainer.outcomes
    known = trainer.curriculum_signals(rollout)
    assert "success" not in known  # nothing was graded by a name the trainer knows
    trainer.outcomes = type("Graded", (), {"paid": type("Paid", (), {"correct": torch.ones(16).bool()})})
    assert trainer.curriculum_signals(rollout)["success"].tolist() == [1.0] * 16


def test_unknown_and_broken_signals(make):
    trainer = make()
    trainer.num_generations = 2
    values = torch.tensor([0.5, UNKNOWN, UNKNOWN, UNKNOWN, 0.0, 1.0]).double()
    assert trainer._by_prompt("success", values) == [0.5, UNKNOWN, 0.5]
    for broken in (float("nan"), float("inf"), -0.5):
        with pytest.raises(UserError, match="the curriculum's success is .* at step 0: lower"):
            trainer._by_prompt("success", torch.tensor([0.5, broken, 1.0, 1.0]).double())


def test_a_signal_that_the_method_does_not_have_is_refused(make):
    trainer = make()
    weights = build(CurriculumSettings, {"weights": {"probe_kl_drop": 1.0}}, "here")
    with pytest.raises(UserError, match="sec goes by probe_kl_drop.*abs_advantage, success.*weights"):
        trainer.follow(build_curriculum("sec", weights, records(), seed=0, num_rollouts=4))
    trainer.curriculum_knows = frozenset()
    with pytest.raises(UserError, match="pass_rate goes by success, and what this method knows is nothing"):
        trainer.follow(build_curriculum("pass_rate", SETTINGS, records(), seed=0, num_rollouts=4))


def test_records_without_a_level_are_counted_in_log_and_manifest(inputs, tiny_models, tmp_path):
    rows = read_jsonl(inputs["train"])
    for row in rows[:5]:
        row["level"] = None
    write_jsonl(tmp_path / "train.jsonl", rows)
    files = {**inputs, "train": tmp_path / "train.jsonl"}
    ctx = stage_context(
        tmp_path / "out", files, tiny_models("llama"), replace(ALGOS["06"], num_rollouts=2), curriculum="sec"
    )
    run_script("06", ctx)
    assert ctx.metrics["curriculum"]["left_out"] == 5
    assert "--curriculum sec never chooses 5 of 12 training records" in (ctx.out / "stage.log").read_text()
    chosen = {name for row in read_jsonl(ctx.out / "logs" / LOG_FILE) for name in row["ids"]}
    assert chosen.isdisjoint(row["id"] for row in rows[:5])


def test_the_state_is_in_the_resume_point(make, tmp_path):
    trainer = make(max_steps=4, save_strategy="steps", save_steps=2, output_dir=str(tmp_path / "out"))
    trainer.follow(build_curriculum("sec", SETTINGS, records(), seed=0, num_rollouts=4))
    trainer.train()
    state = read_json(tmp_path / "out" / "checkpoint-2" / STATE_FILE)
    assert state["rollout"] == 1 and set(state["q"]) == {"1", "2"} and max(state["q"].values()) > 0
