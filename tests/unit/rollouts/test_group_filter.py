"""Dynamic sampling: which groups are learnt from, what they cost, and which prompts they answer."""

import math
import random
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.support.group_stub import SIZE, WEIGHT, StubPipeline, group_trainer, token_reward
from tests.support.ppo_stub import ppo_trainer
from utils.frame.files import UserError, read_jsonl
from utils.frame.pipeline import METHODS
from utils.frame.typed_settings import check
from utils.methods.grpo.settings import GrpoAlgo
from utils.methods.grpo.trainer import SharedPrefixGRPOTrainer
from utils.methods.ppo.settings import PpoAlgo
from utils.methods.ppo.siblings import sibling_values
from utils.methods.rloo.settings import RlooAlgo
from utils.methods.rloo.trainer import SharedPrefixRLOOTrainer
from utils.rollouts.prompt_order import prompts_from
from utils.rollouts.rollout_log import RolloutLog
from utils.rollouts.shared_prefix_trainer import EpochSampler
from utils.training.limits import method_fits

KINDS = {"grpo": SharedPrefixGRPOTrainer, "rloo": SharedPrefixRLOOTrainer}
ROLLOUTS, PROMPTS = 6, 4  # of the budget: rollouts, and prompts in each
RIGHT = 52  # the made-up verifier's: a completion that begins with this token is right


class Verified(StubPipeline):
    """Rewards with a verified part, and a shaped one by which all completions of a group differ."""

    def score_tokens(self, record, batch, texts, truncated, update=True):
        paid = super().score_tokens(record, batch, texts, truncated)
        right = batch.completion_ids[:, 0] == RIGHT
        components = paid.components | {"exact_match": right.float()}
        shaped = paid.token_rewards + 0.1 * batch.completion_mask
        return replace(paid, token_rewards=shaped, components=components, correct=right)

    score_outcomes = score_tokens

    def correct(self, record, texts):
        return [bool(text) and text[0] == self.first for text in texts]


def feed(trainer, chances) -> list[list[int]]:
    """Let completions be right as `chances` (by group, in turn) say; returns the prompts of each draw."""
    asked = []

    def sample(prompt_ids, *_):
        asked.append([tuple(ids) for ids in prompt_ids[::SIZE]])
        rows = []
        for group in range(len(prompt_ids) // SIZE):
            draw = random.Random(f"{trainer.state.global_step} {len(asked)} {group}")
            right = draw.choice(chances)
            for place in range(SIZE):
                first = RIGHT if place < right else RIGHT + 1
                rows.append([first, *(draw.randrange(40, 90) for _ in range(draw.choice([0, 1, 4])))])
        return rows if isinstance(trainer, SharedPrefixRLOOTrainer) else (rows, None)

    trainer._sample_turn = sample
    return asked


@pytest.fixture
def make(tiny_models, tmp_path):
    """A trainer of a method with a filter, on a budget of `ROLLOUTS` rollouts of `PROMPTS` groups."""

    def made(method="grpo", kind="outcome", chances=(0, 1, 3, SIZE), limit=4, **changes):
        if method == "ppo":
            changes = {
                "per_device_train_batch_size": 8,
                "siblings": True,
                "max_steps": 4 * ROLLOUTS,
            } | changes
            trainer = ppo_trainer(tiny_models("llama"), tmp_path / "out", logging_steps=1, **changes)
        else:
            changes = {"max_steps": 2 * ROLLOUTS} | changes
            trainer = group_trainer(KINDS[method], tiny_models("llama"), tmp_path / "out", **changes)
            del trainer._generate_single_turn
        pipeline = Verified()
        pipeline.first = trainer.processing_class.decode([RIGHT])
        trainer.pipeline = pipeline
        if method != "ppo":
            trainer.outcomes.pipeline = pipeline
            trainer.outcomes.score = pipeline.score_outcomes
        trainer.filter_groups(SimpleNamespace(group_filter=kind, group_filter_limit=limit))
        return trainer, feed(trainer, chances)

    return made


def logged(trainer, key):
    return [row[key] for row in trainer.state.log_history if key in row]


def weights(trainer):
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters()}


@pytest.mark.parametrize("method", ["grpo", "rloo", "ppo"])
def test_an_outcome_filter_on_a_shaped_reward_leaves_no_phantom_advantage(make, method):
    """And the budget is spent to the last completion, in fewer updates."""
    plain, _ = make(method, kind="none")
    plain.train()
    assert max(logged(plain, "advantages/phantom")) > 0.2 and plain.state.global_step == plain.args.max_steps
    trainer, _ = make(method)
    trainer.train()
    assert set(logged(trainer, "advantages/phantom")) == {0.0}
    assert min(logged(trainer, "advantages/abs_mean" if method != "ppo" else "loss")) != 0
    assert max(logged(trainer, "groups_discarded")) > 0.2
    assert trainer.cost.sampled_completions == plain.cost.sampled_completions == ROLLOUTS * PROMPTS * SIZE
    assert trainer.state.global_step < plain.state.global_step
    updates = 4 if method == "ppo" else 2
    assert trainer.state.global_step % updates == 0 == trainer.state.global_step - trainer.state.max_steps


def test_prompts_are_those_of_a_run_without_a_filter(make):
    runs = []
    for kind in ("none", "outcome"):
        trainer, asked = make(kind=kind)
        trainer.train()
        runs.append([prompt for draw in asked for prompt in draw])
        assert len(asked) == ROLLOUTS if kind == "none" else len(asked) > ROLLOUTS
    assert runs[0] == runs[1] and len(runs[0]) == ROLLOUTS * PROMPTS


@pytest.mark.parametrize("method", ["grpo", "rloo", "ppo"])
def test_a_filter_that_discards_nothing_changes_nothing(make, method):
    found = []
    for kind in ("none", "outcome", "reward_std"):
        trainer, _ = make(method, kind, chances=(1, 2, 3))
        trainer.train()
        found.append((weights(trainer), logged(trainer, "loss"), logged(trainer, "learning_rate")))
    for trained, losses, rates in found[1:]:
        assert all(torch.equal(value, found[0][0][name]) for name, value in trained.items())
        assert (losses, rates) == found[0][1:]


@pytest.mark.parametrize("method", ["grpo", "rloo", "ppo"])
def test_without_any_signal_the_budget_is_spent_and_nothing_is_learnt(make, method):
    trainer, asked = make(method, chances=(0, SIZE), **{"kl_coef" if method == "ppo" else "beta": 0.0})
    before = weights(trainer)
    trainer.train()
    assert all(torch.equal(value, before[name]) for name, value in weights(trainer).items())
    # Four rollouts' worth of completions in the first, the other two in the second.
    assert list(map(len, asked)) == [PROMPTS] * ROLLOUTS
    assert trainer.state.global_step == trainer.args.max_steps // ROLLOUTS * 2
    assert trainer.cost.sampled_completions == ROLLOUTS * PROMPTS * SIZE


def test_what_is_missing_is_drawn_and_what_stays_empty_left_out(make):
    trainer, _ = make(limit=2)
    asked, turns = [], iter([[1, 0, 0, SIZE], [0, 3, SIZE], [0]])

    def sample(prompt_ids, *_):
        rights = next(turns)
        asked.append(len(prompt_ids) // SIZE)
        firsts = [RIGHT if place < right else 60 for right in rights for place in range(SIZE)]
        return [[first, 70 + number] for number, first in enumerate(firsts)], None

    trainer._sample_turn, trainer.lr_scheduler = sample, SimpleNamespace(last_epoch=0)
    rollout = trainer._next_rollout([{}] * PROMPTS * SIZE)
    assert asked == [4, 3, 1]  # the limit is 8 groups
    kept = [True] * 2 * SIZE + [False] * 2 * SIZE
    assert (rollout["completion_mask"].sum(1) > 0).tolist() == kept
    assert (rollout["advantages"] != 0).tolist() == kept
    assert rollout["num_items_in_batch"] == 2 * SIZE * 2
    assert rollout["completion_ids"][: 2 * SIZE, 0].tolist() == [RIGHT] + [60] * 3 + [RIGHT] * 3 + [60]
    assert trainer._metrics["train"]["groups_discarded"] == [6 / 8]
    assert trainer._metrics["train"]["train_accuracy"] == [(1 + SIZE + 3 + SIZE) / (8 * SIZE)]


def half_filled(trainer) -> dict:
    """A rollout of four groups, of which the first and the third have signal; these come first."""

    def sample(prompt_ids, *_):
        firsts = [RIGHT if place < right else 60 for right in (1, 0, 3, SIZE) for place in range(SIZE)]
        rows = [[first, 70 + number] for number, first in enumerate(firsts)]
        return rows if isinstance(trainer, SharedPrefixRLOOTrainer) else (rows, None)

    trainer._sample_turn, trainer.lr_scheduler = sample, SimpleNamespace(last_epoch=0)
    return trainer._next_rollout([{}] * PROMPTS * SIZE)


def normal(values, axis=None):
    return (values - values.mean(axis, keepdims=True)) / (values.std(axis, ddof=1, keepdims=True) + 1e-4)


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("grpo", {"scale_rewards": "batch"}),
        ("grpo", {"multi_objective_aggregation": "normalize_then_sum"}),
        ("rloo", {"normalize_advantages": True}),
        ("ppo", {}),
    ],
    ids=["batch", "gdpo", "reinforce", "ppo"],
)
def test_statistics_are_of_the_groups_that_are_left(make, method, changes):
    """Advantages that a deviation of the rollout divides, and the reward that is logged."""
    trainer, _ = make(method, limit=1, **{"kl_coef" if method == "ppo" else "beta": 0.0}, **changes)
    rollout = half_filled(trainer)
    kept = rollout["completion_ids"][: 2 * SIZE].tolist()
    assert [ids[0] == RIGHT for ids in kept] == [True, *[False] * 3, *[True] * 3, False]
    parts = np.array([[ids[0] == RIGHT, WEIGHT * sum(map(token_reward, ids))] for ids in kept])
    rewards = parts.sum(1).reshape(2, SIZE)
    assert trainer._metrics["train"]["reward"] == [pytest.approx(rewards.mean(), abs=1e-6)]
    if method == "rloo":
        expected = normal(SIZE / (SIZE - 1) * (rewards - rewards.mean(1, keepdims=True)))
    elif "scale_rewards" in changes:
        expected = (rewards - rewards.mean(1, keepdims=True)) / (rewards.std(ddof=1) + 1e-4)
    else:
        expected = normal(normal(parts.reshape(2, SIZE, 2), 1).sum(2))
    if method != "ppo":
        found = rollout["advantages"][: 2 * SIZE].double().numpy()
        np.testing.assert_allclose(found, expected.ravel(), rtol=0, atol=1e-5)


def test_copies_that_fill_a_rollout_do_not_value_what_they_copy(make):
    """Else a completion would have a part in its own values."""
    trainer, _ = make("ppo", chances=(1, 2, 3), lam=1.0)
    trainer.lr_scheduler = SimpleNamespace(last_epoch=math.inf)
    trainer.cost.sampled((ROLLOUTS * PROMPTS - 1) * SIZE, 0)  # all but one group of the budget
    rollout = trainer._next_rollout([{}] * PROMPTS * SIZE)
    assert (rollout["completion_mask"].sum(1) > 0).tolist() == [True] * SIZE + [False] * 3 * SIZE
    returns, ids, mask = (rollout[name][:SIZE] for name in ("returns", "completion_ids", "completion_mask"))
    args = trainer.args
    alone = sibling_values(returns, ids, mask, SIZE, args.sibling_shrinkage, args.group_shrinkage)
    torch.testing.assert_close(rollout["old_values"][:SIZE], alone, rtol=0, atol=1e-6)
    assert alone.abs().max() > 0.1


def test_the_rollout_log_has_no_advantages_where_nothing_is_learnt(make, tmp_path):
    trainer, _ = make("rloo", limit=1)
    trainer.rollout_log = RolloutLog(tmp_path / "rollouts", tmp_path / "rollouts.jsonl")
    rollout = half_filled(trainer)
    trainer.rollout_log.on_train_end(None, trainer.state, None)
    (row,) = read_jsonl(tmp_path / "rollouts.jsonl")
    assert [any(group) for group in row["advantages"]] == [True, True, False, False]
    assert all(any(group) for group in row["rewards"])
    mean = rollout["advantages"].abs().mean().item()
    assert trainer._metrics["train"]["advantages/abs_mean"] == [pytest.approx(mean)]


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_what_is_left_out_has_a_finite_loss_however_long_it_is(make, method):
    """In float32, where e to the power of the surprise of 150 random tokens is infinite."""
    trainer, _ = make(method, limit=1, max_completion_length=160)
    trainer.model.float()
    trainer.ref_model.float()

    def sample(prompt_ids, *_):
        rows = [[RIGHT if row == 0 else 60, *range(2, 152)] for row in range(len(prompt_ids))]
        return rows if method == "rloo" else (rows, None)

    trainer._sample_turn, trainer.lr_scheduler = sample, SimpleNamespace(last_epoch=0)
    inputs = trainer._prepare_inputs([{}] * PROMPTS * SIZE)
    assert trainer._metrics["train"]["groups_discarded"] == [3 / 4]
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    gradients = [each.grad for each in trainer.model.parameters() if each.grad is not None]
    assert all(map(torch.all, map(torch.isfinite, (loss, *gradients)))) and any(map(torch.any, gradients))


def test_the_learning_rate_follows_the_completions_drawn(make):
    """A linear schedule over the twelve steps of six rollouts, by how much was drawn before each rollout."""
    trainer, _ = make(learning_rate=0.12, warmup_steps=0)
    before = []
    whole = trainer._next_rollout
    trainer._next_rollout = lambda rows: before.append(trainer.cost.sampled_completions) or whole(rows)
    trainer.train()
    steps = [12 * drawn // (ROLLOUTS * PROMPTS * SIZE) + more for drawn in before for more in (0, 1)]
    assert logged(trainer, "learning_rate") == pytest.approx([0.12 * (1 - step / 12) for step in steps])
    assert steps[-1] > len(steps)


def test_equal_rewards_are_no_signal_and_unequal_ones_are(make):
    trainer, _ = make(kind="reward_std")
    trainer.lr_scheduler = SimpleNamespace(last_epoch=0)
    rows = {"same": [[60, 70]] * SIZE, "wrong alike": [[60, 70]] * 3 + [[60, 71]]}
    for name, completions in rows.items():
        [group] = trainer._draw([0])
        group = group._replace(completions=completions)
        assert trainer._judge([group])[0] == [name != "same"]


@pytest.mark.parametrize("count", [8, 10])
def test_prompts_from_any_place_are_those_of_the_sampler(count):
    sampler = EpochSampler(range(count), 1, batch_size=4, shuffle=True, seed=3)
    drawn = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        drawn += list(sampler)
    assert len(drawn) == 24
    for first, number in ((0, 24), (3, 7), (7, 2), (13, 0), (20, 4)):
        assert prompts_from(first, number, count, 4, 3) == drawn[first : first + number]


def test_what_a_filter_cannot_go_with_is_said_beforehand(tmp_path):
    for algo, found in (
        (GrpoAlgo(group_filter="outcome", gradient_accumulation_steps=8), "gradient_accumulation_steps"),
        (
            PpoAlgo(group_filter="reward_std", num_generations=1, value_model="shared"),
            "num_generations above 1",
        ),
    ):
        with pytest.raises(ValueError, match=found):
            check(algo)
    algo = RlooAlgo(group_filter="outcome")
    for curriculum in ("random", "sec"):
        config = SimpleNamespace(algo=algo, options=SimpleNamespace(curriculum=curriculum))
        if curriculum == "random":
            method_fits(METHODS["rloo"], config, tmp_path)
            continue
        with pytest.raises(UserError, match="--curriculum sec chooses prompts itself"):
            method_fits(METHODS["rloo"], config, tmp_path)
