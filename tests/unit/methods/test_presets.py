"""The presets of GRPO, RLOO and PPO: settings in their YAML files, against the papers' formulas in NumPy."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.support import group_stub
from tests.support.group_formulas import outcome_advantages, separate_advantages, slow_loss
from tests.support.group_stub import (
    WEIGHT,
    completions_of,
    group_trainer,
    log_probs_of,
    move,
    outcome,
    rollout_inputs,
    token_reward,
)
from tests.support.ppo_formulas import numpy_gae, numpy_policy_loss, numpy_value_loss
from tests.support.ppo_stub import ppo_trainer, token_values
from utils.frame.config import load_tier
from utils.frame.files import REPO_ROOT
from utils.frame.pipeline import METHODS, PRESETS
from utils.frame.typed_settings import check
from utils.methods.distill.settings import DistillAlgo
from utils.methods.grpo.settings import GrpoAlgo
from utils.methods.grpo.trainer import SharedPrefixGRPOTrainer
from utils.methods.ppo.settings import PpoAlgo, PpoUpdates
from utils.methods.rloo.settings import RlooAlgo
from utils.methods.rloo.trainer import SharedPrefixRLOOTrainer
from utils.models.prefix.shared_prefix import CompletionBatch

SETTINGS = {"grpo": GrpoAlgo, "rloo": RlooAlgo, "ppo": PpoAlgo, "distill": DistillAlgo}
BY_SETTINGS = [name for name in PRESETS if METHODS[name].code]  # and by nothing else
OF_GRPO = [name for name in BY_SETTINGS if METHODS[name].package == "grpo"]
ONE_ROLLOUT = {"per_device_train_batch_size": 16, "steps_per_generation": 1}
LOSS = ["loss_type", "importance_sampling_level", "epsilon", "epsilon_high", "beta", "delta", "scale_rewards"]


def settings_of(name):
    row = METHODS[name]
    return load_tier(SETTINGS[row.package], REPO_ROOT / row.defaults)


@pytest.mark.parametrize("name", BY_SETTINGS)
def test_a_preset_differs_from_its_method_in_settings_that_hold(name):
    found = settings_of(name)
    check(found)
    plain = SETTINGS[METHODS[name].package]()
    assert found != plain, "a preset without a setting of its own is the method itself"


@pytest.mark.parametrize("name", OF_GRPO)
def test_advantages_and_loss_of_a_preset_equal_numpy(name, tiny_models, tmp_path, monkeypatch):
    monkeypatch.setattr(group_stub, "outcome", lambda ids: outcome(ids) + 0.6)  # means of either sign
    algo = settings_of(name)
    given = {key: getattr(algo, key) for key in [*LOSS, "multi_objective_aggregation"]}
    divides = given["scale_rewards"] == "mean"
    given["scale_rewards"] = "none" if divides else given["scale_rewards"]
    trainer = group_trainer(
        SharedPrefixGRPOTrainer, tiny_models("llama"), tmp_path / "out", **given, **ONE_ROLLOUT
    )
    trainer.divides_by_mean = divides
    part = trainer._generate_and_score_completions(rollout_inputs())
    ids = completions_of(part)
    parts = np.array([[outcome(row) + 0.6, WEIGHT * sum(map(token_reward, row))] for row in ids])
    if algo.multi_objective_aggregation == "normalize_then_sum":
        advantages = separate_advantages(parts)
    else:
        advantages = outcome_advantages(parts.sum(1), algo.scale_rewards)
    np.testing.assert_allclose(part["advantages"].double().numpy(), advantages, rtol=0, atol=2e-6)

    old = log_probs_of(trainer.model, part, trainer.temperature)
    move(trainer.model, 0.02, 2)
    new = log_probs_of(trainer.model, part, trainer.temperature)
    ref = log_probs_of(trainer.ref_model, part, trainer.temperature) if algo.beta else None
    mask = part["completion_mask"].numpy().astype(float)
    expected = slow_loss(new, old, ref, part["advantages"].double().numpy(), mask, trainer.args, mask.sum())
    found = trainer._compute_loss(trainer.model, part | {"old_per_token_logps": torch.tensor(old)})
    assert found.item() == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert abs(expected) > 1e-5


def test_reinforce_has_no_baseline_but_the_mean_of_the_rollout(tiny_models, tmp_path):
    algo = settings_of("reinforce")
    given = {"baseline_type": algo.baseline_type, "normalize_advantages": algo.normalize_advantages}
    trainer = group_trainer(
        SharedPrefixRLOOTrainer, tiny_models("llama"), tmp_path / "out", beta=0.0, **given, **ONE_ROLLOUT
    )
    part = trainer._generate_and_score_completions(rollout_inputs())
    ids = completions_of(part)
    earned = np.array([outcome(row) + WEIGHT * sum(map(token_reward, row)) for row in ids])
    expected = (earned - earned.mean()) / (earned.std(ddof=1) + 1e-4)
    np.testing.assert_allclose(part["advantages"].double().numpy(), expected, rtol=0, atol=1e-6)


def test_vapo_equals_numpy(tiny_models, tmp_path):
    """Lambda by length for the policy, 1 for the critic, clip-higher, the likelihood of right completions."""
    algo = settings_of("vapo")
    names = {field.name for field in dataclasses.fields(PpoUpdates)} - {"num_ppo_epochs", "num_mini_batches"}
    given = {name: getattr(algo, name) for name in names} | {"lam_length": 0.4, "whiten_advantages": False}
    trainer = ppo_trainer(tiny_models("llama"), tmp_path / "out", separate=True, **given)
    rows = [[50, 60, 1], [70], [1], [51, 52, 53, 54, 55, 56], [82, 90], [80, 1], [90, 91, 92, 1], [93]]
    trainer._generate_single_turn = lambda prompts, *_: (rows, None)
    trainer.model.train()
    data = trainer.train_dataset
    part = trainer._generate_and_score_completions([dict(data[row]) for row in [0] * 4 + [1] * 4])
    lengths = np.array(list(map(len, rows)))
    mask = part["completion_mask"].bool().numpy()
    earned = np.zeros(mask.shape)
    for row, ids in enumerate(rows):
        earned[row, : len(ids)] = token_values(ids)
    values = part["old_values"].double().numpy()
    advantages = np.zeros(mask.shape)
    for row, length in enumerate(lengths):
        lam = max(0.0, 1 - 1 / (0.4 * length))
        one = slice(row, row + 1)
        advantages[one] = numpy_gae(earned[one], values[one], [length], 1.0, lam)
    np.testing.assert_allclose(part["advantages"].double().numpy(), advantages, rtol=0, atol=1e-6)
    returns = numpy_gae(earned, values, lengths, 1.0, 1.0) + values
    np.testing.assert_allclose(part["returns"].double().numpy(), returns * mask, rtol=0, atol=1e-6)

    part["old_log_probs"] = part["old_log_probs"] + 0.4 * torch.randn(
        mask.shape, generator=torch.Generator().manual_seed(3)
    )
    part["old_values"] = part["old_values"] + 0.5
    trainer._rollout, trainer.args.steps_per_generation = part, 1
    [batch] = trainer._shuffled_micro_batches()
    trainer.args.per_device_train_batch_size = 8
    found = trainer._compute_loss(trainer.model, batch).item()
    kept = batch["completion_mask"].bool()
    with torch.no_grad():
        log_probs, new_values = trainer._score_rollout(
            trainer.model, CompletionBatch.within(batch), value=True
        )
    names = ("old_log_probs", "advantages", "old_values", "returns")
    picked = [batch[name][kept].double().numpy() for name in names]
    new, value = log_probs[kept].double().numpy(), new_values[kept].double().numpy()
    policy, _ = numpy_policy_loss(new, picked[0], picked[1], 0.2, 0.28)
    critic, _ = numpy_value_loss(value, picked[2], picked[3], 0.2)
    right = (batch["correct"][:, None] & kept)[kept].numpy()
    expected = (policy + algo.vf_coef * critic).mean() - 0.1 * new[right].mean()
    assert 0 < right.mean() < 1
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)
