"""RLOO against slow NumPy and stock TRL: advantages, losses, rollout log."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from trl import RLOOTrainer

from tests.support.baselines import slow_baselines
from tests.support.group_stub import (
    PROMPTS,
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
from utils.frame.files import UserError, read_jsonl
from utils.frame.typed_settings import check
from utils.methods.ppo.settings import PpoAlgo
from utils.methods.rloo.settings import RlooAlgo
from utils.methods.rloo.trainer import SharedPrefixRLOOTrainer
from utils.rollouts.advantages import baselines
from utils.rollouts.rollout_log import RolloutLog, by_group
from utils.rollouts.shared_prefix_trainer import SharedPrefix
from utils.rollouts.start import RenderedPrompts


class StockRLOO(RenderedPrompts, SharedPrefix, RLOOTrainer):
    """TRL's own advantages and losses, on the same scores."""


@pytest.fixture
def make(tiny_models, tmp_path):
    def build(kind=SharedPrefixRLOOTrainer, **changes):
        return group_trainer(kind, tiny_models("llama"), tmp_path / "out", **changes)

    return build


# --------------------------------------------------------------------------------- advantages and losses


@given(
    st.integers(2, 5).flatmap(
        lambda size: st.lists(
            st.lists(st.floats(-20, 20, width=32), min_size=size, max_size=size), min_size=1, max_size=4
        )
    ),
    st.sampled_from(["loo", "mean", "none"]),
)
def test_baselines_equal_loops(rewards, kind):
    flat = torch.tensor(rewards, dtype=torch.float64).flatten()
    found = baselines(flat, len(rewards[0]), kind).view(len(rewards), -1)
    np.testing.assert_allclose(found.numpy(), slow_baselines(rewards, kind), rtol=0, atol=1e-12)


@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])
@pytest.mark.parametrize("kind", ["loo", "mean", "none"])
def test_a_rollout_and_its_log_equal_numpy(make, tmp_path, kind, normalize):
    """The policy has left its reference, so the KL in the reward counts."""
    trainer = make(baseline_type=kind, normalize_advantages=normalize)
    trainer.rollout_log = RolloutLog(tmp_path / "rollouts", tmp_path / "rollouts.jsonl")
    rollout = trainer._generate_and_score_completions(rollout_inputs())
    policy = log_probs_of(trainer.model, rollout, trainer.temperature)
    reference = log_probs_of(trainer.ref_model, rollout, trainer.temperature)
    kl = (policy - reference).sum(1).reshape(-1, SIZE)
    ids = completions_of(rollout)
    paid = np.array([outcome(row) + WEIGHT * sum(map(token_reward, row)) for row in ids]).reshape(-1, SIZE)
    returns = paid - 0.1 * kl
    assert np.abs(0.1 * kl).max() > 1e-3
    baseline = np.array(slow_baselines(returns.tolist(), kind))
    advantages = returns - baseline
    if normalize:
        advantages = (advantages - advantages.mean()) / (advantages.std(ddof=1) + 1e-4)

    def close(found, expected):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)

    close(rollout["advantages"].double().numpy().reshape(-1, SIZE), advantages)
    trainer.rollout_log.on_train_end(None, trainer.state, None)
    (row,) = read_jsonl(tmp_path / "rollouts.jsonl")
    assert row["step"] == 0 and row["ids"] == [f"train-{number}" for number in range(len(PROMPTS))]
    for name, expected in (
        ("rewards", paid),
        ("kl", kl),
        ("baselines", baseline),
        ("advantages", advantages),
    ):
        close(row[name], expected)
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    assert metrics["advantages/abs_mean"] == pytest.approx(np.abs(advantages).mean(), abs=1e-6)
    assert metrics["baselines/mean"] == pytest.approx(baseline.mean(), abs=1e-6)
    assert metrics["kl_sequence"] == pytest.approx(kl.mean(), abs=1e-6)
    assert metrics["reward"] == pytest.approx(paid.mean(), abs=1e-6)


@pytest.mark.parametrize(
    "changes",
    [{}, {"normalize_advantages": True}, {"reward_clip_range": (-0.3, 0.2)}, {"beta": 0.0}],
    ids=str,
)
def test_leave_one_out_is_stock_to_the_bit(make, changes):
    ours, stock = make(**changes), make(StockRLOO, **changes)
    found, expected = (trainer._generate_and_score_completions(rollout_inputs()) for trainer in (ours, stock))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    assert expected["advantages"].abs().max() > 0.1


@pytest.mark.parametrize("high", [None, 0.4])
@pytest.mark.parametrize("kind", ["loo", "mean", "none"])
def test_the_loss_equals_numpy(make, kind, high):
    """Ratios of whole completions, of which some are clipped after the policy has moved."""
    trainer = make(baseline_type=kind, epsilon_high=high)
    part = trainer._prepare_inputs(rollout_inputs())
    old = log_probs_of(trainer.model, part, trainer.temperature).sum(1)
    np.testing.assert_allclose(part["old_logps"].numpy(), old, rtol=0, atol=1e-6)
    move(trainer.model, 0.01, 2)
    ratio = np.exp(log_probs_of(trainer.model, part, trainer.temperature).sum(1) - old)
    advantages = part["advantages"].double().numpy()
    held = np.clip(ratio, 0.8, 1.2 if high is None else 1 + high)
    expected = -np.minimum(ratio * advantages, held * advantages).mean()
    found = trainer._compute_loss(trainer.model, part)
    assert found.item() == pytest.approx(expected, rel=1e-6, abs=1e-6) and found.requires_grad
    assert 0.2 < (held != ratio).mean() < 0.9
    outside = (held != ratio) & (held * advantages < ratio * advantages)
    assert trainer._metrics["train"]["clip_ratio/region_mean"][-1] == pytest.approx(outside.mean())


def test_numbers_that_are_not_finite_stop_the_run(make):
    """TRL would set their advantages to 0 and go on."""
    trainer = make()
    with torch.no_grad():
        trainer.ref_model.model.norm.weight.fill_(math.nan)
    with pytest.raises(UserError, match="rewards or KL that are not finite at step 0: lower") as caught:
        trainer._generate_and_score_completions(rollout_inputs())
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------ the log


def test_rollouts_of_one_step_are_all_kept_and_repeated_ones_replaced(tmp_path):
    def write(steps):
        log = RolloutLog(tmp_path / "rows", tmp_path / "rollouts.jsonl")
        for number, step in enumerate(steps):
            log.write(step, {"rewards": by_group(torch.tensor([0.1, number]), 2)})
        return log

    write([0, 0, 10, 10])
    log = write([10, 10])  # as after a resumption at step 10
    log.on_train_end(None, type("State", (), {"is_world_process_zero": True}), None)
    rows = read_jsonl(tmp_path / "rollouts.jsonl")
    assert [(row["step"], row["rewards"]) for row in rows] == [
        (0, [[0.1, 0.0]]),
        (0, [[0.1, 1.0]]),
        (10, [[0.1, 0.0]]),
        (10, [[0.1, 1.0]]),
    ]


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=4, max_size=4))
def test_logged_numbers_are_the_float32_they_were(values):
    found = by_group(torch.tensor(values), 2)
    assert torch.equal(torch.tensor(found, dtype=torch.float32).flatten(), torch.tensor(values))


# --------------------------------------------------------------------------------------------- settings


def test_settings():
    for changes, message in [
        ({"num_samples": 1}, "num_samples must be at least 2"),
        ({"num_samples": 7}, r"\(128\) must be a multiple of num_samples \(7\)"),
        ({"beta": -1.0}, "beta must be at least 0"),
        ({"epsilon": 0.0}, "epsilon must be above 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            check(RlooAlgo(**changes))
    for algo in (RlooAlgo(), PpoAlgo()):
        check(algo)
        assert (algo.sampled_completions, algo.num_prompts) == (8192, 1024)


def test_the_shipped_settings_have_the_common_budget():
    from utils.frame.config import load_tier
    from utils.frame.files import REPO_ROOT
    from utils.methods.grpo.settings import GrpoAlgo

    for name, kind in (("rloo", RlooAlgo), ("grpo", GrpoAlgo), ("ppo", PpoAlgo)):
        algo = load_tier(kind, REPO_ROOT / "configs" / "algorithms" / f"{name}.yaml")
        assert (algo.sampled_completions, algo.num_prompts) == (8192, 1024), name
