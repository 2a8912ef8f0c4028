"""The GRPO family against slow NumPy: advantages, losses, supervision by token; refusals."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tests.support import group_stub
from tests.support.group_formulas import outcome_advantages, slow_loss
from tests.support.group_stub import (
    SIZE,
    WEIGHT,
    completions_of,
    group_trainer,
    log_probs_of,
    move,
    outcome,
    rollout_inputs,
    token_reward,
)
from utils.frame.typed_settings import check
from utils.methods.grpo.settings import GrpoAlgo
from utils.methods.grpo.trainer import SharedPrefixGRPOTrainer
from utils.rollouts.advantages import phantom_share, process_advantages


@pytest.fixture
def make(tiny_models, tmp_path):
    return lambda **changes: group_trainer(
        SharedPrefixGRPOTrainer, tiny_models("llama"), tmp_path / "out", **changes
    )


# ------------------------------------------------------------------------------------ slow references


def slow_process(rewards, mask, size) -> np.ndarray:
    """Normalised over the group's tokens, then summed from each token to the end: loops alone."""
    result = np.zeros(mask.shape)
    for first in range(0, len(mask), size):
        rows = range(first, first + size)
        tokens = [rewards[i][t] for i in rows for t in range(mask.shape[1]) if mask[i][t]]
        if not tokens:
            continue
        mean = sum(tokens) / len(tokens)
        spread = math.sqrt(sum((x - mean) ** 2 for x in tokens) / (len(tokens) - 1)) if tokens[1:] else 0.0
        if spread <= 1e-6 * math.sqrt(sum(x * x for x in tokens) / len(tokens)):
            continue
        for i in rows:
            for t in range(mask.shape[1]):
                later = [u for u in range(t, mask.shape[1]) if mask[i][u]]
                result[i, t] = sum((rewards[i][u] - mean) / spread for u in later) if mask[i][t] else 0.0
    return result


# ------------------------------------------------------------------------------------------ the trainer


@pytest.mark.parametrize("scale", ["group", "batch", "mean", "none"])
def test_advantages_equal_numpy(make, scale):
    trainer = make(scale_rewards="none" if scale == "mean" else scale)
    trainer.divides_by_mean = scale == "mean"
    rollout = trainer._generate_and_score_completions(rollout_inputs())
    paid = [outcome(ids) + WEIGHT * sum(map(token_reward, ids)) for ids in completions_of(rollout)]
    expected = outcome_advantages(np.array(paid), scale)
    np.testing.assert_allclose(rollout["advantages"].double().numpy(), expected, rtol=0, atol=1e-6)
    assert abs(trainer._metrics["train"]["advantages/abs_mean"][0] - np.abs(expected).mean()) < 1e-6
    assert trainer._metrics["train"]["reward"][0] == pytest.approx(np.mean(paid), abs=1e-6)


LOSSES = [
    ("grpo", "token", {}),
    ("grpo", "sequence", {}),
    ("dr_grpo", "token", {}),
    ("dapo", "token", {"epsilon_high": 0.28}),
    ("bnpo", "token", {}),
    ("cispo", "token", {"epsilon_high": 1.3}),
    ("sapo", "token", {}),
    ("luspo", "sequence", {}),
    ("vespo", "token", {}),
]


@pytest.mark.parametrize(("beta", "supervision"), [(0.1, "outcome"), (0.0, "process")])
@pytest.mark.parametrize(("kind", "level", "more"), LOSSES, ids=[f"{a}-{b}" for a, b, _ in LOSSES])
def test_losses_equal_numpy(make, kind, level, more, beta, supervision):
    """Two micro-batches of a rollout, after the policy has moved, so that ratios leave the clip range."""
    trainer = make(
        loss_type=kind,
        importance_sampling_level=level,
        beta=beta,
        tokens=supervision == "process",
        per_device_train_batch_size=8,
        steps_per_generation=2,
        **more,
    )
    parts = []
    for step in range(2):
        trainer._step = step
        parts.append(trainer._prepare_inputs(rollout_inputs()))
    olds = [log_probs_of(trainer.model, part, trainer.temperature) for part in parts]
    tokens = sum(int(part["completion_mask"].sum()) for part in parts)
    move(trainer.model, 0.02, 2)
    clipped = 0.0
    for part, old in zip(parts, olds, strict=True):
        mask = part["completion_mask"].numpy().astype(float)
        assert 0 < mask.mean() < 1
        new = log_probs_of(trainer.model, part, trainer.temperature)
        ref = log_probs_of(trainer.ref_model, part, trainer.temperature) if beta else None
        advantages = part["advantages"].double().numpy()
        assert advantages.ndim == (2 if supervision == "process" else 1)
        expected = slow_loss(new, old, ref, advantages, mask, trainer.args, tokens)
        found = trainer._compute_loss(trainer.model, part)
        assert found.item() == pytest.approx(expected, rel=1e-6, abs=1e-6)
        assert abs(found.item()) > 1e-4 and found.requires_grad
        away = (np.abs(np.exp((new - old) * mask) - 1) > 0.2).sum() / mask.sum()
        clipped += away / 2
    assert 0.1 < clipped < 0.9


@pytest.mark.parametrize("kind", [kind for kind, level, _ in LOSSES if (kind, level) != ("grpo", "sequence")])
def test_every_loss_trains(make, kind):
    level, more = next((level, more) for name, level, more in LOSSES if name == kind)
    trainer = make(loss_type=kind, importance_sampling_level=level, max_steps=2, optim="sgd", **more)
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    assert any(not torch.equal(before[name], value) for name, value in trainer.model.named_parameters())
    assert all(math.isfinite(row["loss"]) for row in trainer.state.log_history if "loss" in row)


# -------------------------------------------------------------------------------- supervision by token


@pytest.mark.parametrize("scale", ["group", "none"])
@pytest.mark.parametrize("cut", [False, True], ids=["all", "mask_truncated"])
def test_process_advantages_of_a_rollout_equal_numpy(make, scale, cut):
    """The weight times the teacher's normalised rewards to come, and the outcome's advantage without them."""
    trainer = make(tokens=True, scale_rewards=scale, mask_truncated_completions=cut)
    if cut:  # let some of the fed completions end
        sample, eos = trainer._generate_single_turn, trainer.processing_class.eos_token_id

        def ending(*args):
            rows = sample(*args)[0]
            return [[*ids[:-1], eos] if number % 3 else ids for number, ids in enumerate(rows)], None

        trainer._generate_single_turn = ending
    rollout = trainer._generate_and_score_completions(rollout_inputs())
    mask = rollout["completion_mask"].numpy()
    assert (mask.sum(1) == 0).any() == cut
    rewards = [[token_reward(token) for token in row] for row in rollout["completion_ids"].tolist()]
    lengths = [len(ids) for ids in trainer._generate_single_turn([None] * 16)[0]]
    ids = [row[:length] for row, length in zip(rollout["completion_ids"].tolist(), lengths, strict=True)]
    outcomes = outcome_advantages(np.array([outcome(row) for row in ids]), scale)
    expected = WEIGHT * slow_process(rewards, mask, SIZE) + outcomes[:, None]
    found = rollout["advantages"].double().numpy()
    np.testing.assert_allclose(found * mask, expected * mask, rtol=0, atol=1e-6)
    totals = [outcome(row) + WEIGHT * sum(map(token_reward, row)) for row in ids]
    assert trainer._metrics["train"]["reward"][0] == pytest.approx(np.mean(totals), abs=1e-6)
    assert trainer._metrics["train"]["reward_std"][0] == pytest.approx(np.std(totals, ddof=1), abs=1e-6)


@given(
    arrays.arrays(np.float64, (6, 4), elements=st.sampled_from([-2.0, -0.3, 0.0, 0.1, 5.0])),
    st.lists(st.integers(0, 4), min_size=6, max_size=6),
    st.sampled_from([2, 3]),
)
def test_process_advantages_equal_loops(rewards, lengths, size):
    mask = np.arange(4) < np.array(lengths)[:, None]
    found = process_advantages(torch.tensor(rewards), torch.tensor(mask), size).numpy()
    np.testing.assert_allclose(found, slow_process(rewards, mask, size), rtol=0, atol=1e-9)


def test_equal_token_rewards_give_no_process_advantage():
    rewards = torch.full((4, 3), 0.1)
    mask = torch.ones(4, 3)
    assert process_advantages(rewards, mask, 2).abs().max() == 0
    moved = process_advantages(rewards + torch.arange(3) * 1e-9, mask, 2)
    assert moved.abs().max() == 0  # below what float32 rewards can tell


def test_first_tokens_of_a_group_sum_to_zero():
    """The tokens' normalised rewards have mean 0, so what is handed out at the start of all is 0."""
    rewards = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(5) < torch.tensor([5, 1, 3, 2, 4, 4, 5, 2])[:, None]
    first = process_advantages(rewards, mask, 4)[:, 0].view(2, 4).sum(1)
    torch.testing.assert_close(first, torch.zeros(2, dtype=torch.float64))


# --------------------------------------------------------------------------------------------- settings


def test_settings_that_contradict_each_other_are_refused():
    for changes, message in [
        ({"loss_type": "cispo"}, "epsilon_high, which must be at least 1 .* found None"),
        ({"loss_type": "cispo", "epsilon_high": 0.28}, "found 0.28"),
        ({"loss_type": "luspo"}, "luspo needs importance_sampling_level sequence"),
        ({"loss_type": "vespo", "importance_sampling_level": "sequence"}, "vespo needs .* token"),
        ({"num_generations": 1}, "num_generations must be at least 2"),
        ({"num_generations": 7}, r"\(128\) must be a multiple of num_generations \(7\)"),
        ({"beta": -1.0}, "beta must be at least 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            check(GrpoAlgo(**changes))
    check(GrpoAlgo(loss_type="cispo", epsilon_high=5.0))
    check(GrpoAlgo(loss_type="luspo", importance_sampling_level="sequence"))


@pytest.mark.parametrize(
    ("accumulation", "completions"), [(1, 8192), (2, 8192), (4, 8192), (8, 16384)], ids=str
)
def test_the_budget_is_counted(accumulation, completions):
    """An optimizer step that takes two rollouts' micro-batches samples twice for one of num_rollouts."""
    algo = GrpoAlgo(gradient_accumulation_steps=accumulation)
    assert (algo.sampled_completions, algo.num_prompts) == (completions, completions // 8)


# ------------------------------------------------------------------------------------ phantom advantage


@given(st.data())
def test_phantom_share_equals_a_loop(data):
    masses = data.draw(st.lists(st.floats(0, 5), min_size=12, max_size=12))
    right = data.draw(st.lists(st.booleans(), min_size=12, max_size=12))
    phantom = whole = 0.0
    for first in range(0, 12, SIZE):
        rows = range(first, first + SIZE)
        mass = sum(masses[row] for row in rows)
        whole += mass
        phantom += mass if len({right[row] for row in rows}) == 1 else 0
    found = phantom_share(torch.tensor(masses, dtype=torch.float64), torch.tensor(right), SIZE)
    assert found == pytest.approx(phantom / whole if whole else 0.0)


def test_the_log_has_the_phantom_share(make, monkeypatch):
    monkeypatch.setattr(group_stub, "outcome", lambda ids: outcome(ids) + 0.3)  # some groups all right
    trainer = make(scale_rewards="none")
    rollout = trainer._generate_and_score_completions(rollout_inputs())
    groups = rollout["advantages"].abs().view(-1, SIZE).sum(1)
    right = trainer.outcomes.paid.correct.view(-1, SIZE).float().mean(1)
    expected = groups[(right == 0) | (right == 1)].sum() / groups.sum()
    assert trainer._metrics["train"]["advantages/phantom"] == [pytest.approx(expected.item(), rel=1e-6)]
    assert 0 < expected < 1
