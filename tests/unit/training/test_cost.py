"""Costs: phases of time against a clock that is moved by hand, counts against what was really sampled."""

from dataclasses import replace

import pytest
import torch

from tests.stages.test_training import GRPO, RECORDS, SFT, SPEC, context, files, train  # noqa: F401 - two are fixtures
from utils.frame.files import read_jsonl
from utils.methods.grpo.trainer import build_grpo_trainer
from utils.methods.sft.trainer import tokenize_demonstrations
from utils.rollouts.prompt_order import prompt_order
from utils.training import cost as cost_module
from utils.training.cost import Cost

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning"
)


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until ``clock[0]`` is set."""
    now = [100.0]
    monkeypatch.setattr(cost_module.time, "perf_counter", lambda: now[0])
    return now


def test_an_inner_phase_is_not_counted_for_the_outer_one(clock):
    cost = Cost()
    with cost.phase("updating"):
        clock[0] += 1
        with cost.phase("scoring"):
            clock[0] += 10
            with cost.phase("sampling"):
                clock[0] += 100
            clock[0] += 1000
        clock[0] += 10_000
    clock[0] += 100_000  # no phase
    with cost.phase("sampling"):
        clock[0] += 0.5
    assert cost.seconds == {"sampling": 100.5, "scoring": 1010, "updating": 10_001}


def test_a_phase_ends_where_its_block_fails(clock):
    cost = Cost()
    with pytest.raises(KeyError), cost.phase("scoring"):
        clock[0] += 2
        raise KeyError
    clock[0] += 5
    assert cost.seconds["scoring"] == 2


def test_a_resumed_cost_goes_on(clock):
    cost, resumed = Cost(), Cost()
    cost.sampled(8, 90)
    cost.trained(70)
    with cost.phase("sampling"):
        clock[0] += 3
    resumed.load_state_dict(cost.state_dict())
    resumed.sampled(8, 10)
    with resumed.phase("sampling"):
        clock[0] += 4
    assert resumed.counts() == {"sampled_completions": 16, "generated_tokens": 100, "trained_tokens": 70}
    assert resumed.seconds["sampling"] == 7 and cost.seconds["sampling"] == 3


def test_grpo_counts_what_it_samples_and_trains_on(context, monkeypatch):  # noqa: F811
    """Four rollouts of 8 completions, each passed over twice; validations do not count."""
    lengths = []
    trainer_class = build_grpo_trainer.__globals__["SharedPrefixGRPOTrainer"]
    sample = trainer_class._sample_turn

    def noted(self, *args, **kwargs):
        sampled = sample(self, *args, **kwargs)
        lengths.extend(len(ids) for ids in sampled[0])
        return sampled

    monkeypatch.setattr(trainer_class, "_sample_turn", noted)
    ctx = context(algo=GRPO)
    train(ctx)
    assert len(lengths) == 32
    assert ctx.metrics["cost"] == {
        "sampled_completions": 32,
        "generated_tokens": sum(lengths),
        "trained_tokens": 2 * sum(lengths),
    }
    assert set(ctx.runtime["seconds_by_phase"]) == {"sampling", "scoring", "updating"}
    assert all(seconds > 0 for seconds in ctx.runtime["seconds_by_phase"].values())
    rows = read_jsonl(ctx.out / "logs" / "metrics.jsonl")
    assert [row["sampled_completions"] for row in rows] == [8 * -(-row["step"] // 2) for row in rows]


def test_sft_counts_the_tokens_it_teaches(context):  # noqa: F811
    ctx = context(algo=replace(SFT, max_steps=-1, num_train_epochs=2))
    train(ctx)
    tokenizer = build_grpo_trainer(context(algo=GRPO), RECORDS, SPEC)[1]
    rows, _ = tokenize_demonstrations(RECORDS, tokenizer, ctx.config.model)
    taught = sum(sum(row["completion_mask"]) for row in rows)
    assert ctx.metrics["cost"] == {
        "sampled_completions": 0,
        "generated_tokens": 0,
        "trained_tokens": 2 * taught,
    }
    rows = read_jsonl(ctx.out / "logs" / "metrics.jsonl")
    assert not any("sampled_completions" in row for row in rows)


@pytest.mark.parametrize("seed", [3, 4])
def test_prompts_come_in_the_order_of_the_trainers_sampler(context, seed):  # noqa: F811
    trainer, _ = build_grpo_trainer(context(algo=GRPO, seed=seed), RECORDS, SPEC)
    drawn = list(dict.fromkeys(trainer._get_train_sampler()))
    assert drawn == prompt_order(len(RECORDS), seed)
    assert drawn != list(range(len(RECORDS)))


def test_the_order_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    assert sorted(prompt_order(100, 0)) == list(range(100))
    assert torch.equal(torch.get_rng_state(), before)
