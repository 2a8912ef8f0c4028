"""Values from completions that share a prefix: against loops, an enumeration of all rollouts, in training."""

import itertools
import math

import numpy as np
import pytest
import torch

from tests.support.ppo_stub import ppo_trainer, token_values
from utils.methods.ppo.losses import explained_variance
from utils.methods.ppo.settings import PpoAlgo
from utils.methods.ppo.siblings import explained, group_means, returns_to_go, sibling_values


def random_groups(seed, groups=3, size=4, width=5, vocabulary=2):
    """Token ids, bool mask and rewards of completions that often begin alike; some are empty."""
    generator = torch.Generator().manual_seed(seed)
    rows = groups * size
    ids = torch.randint(vocabulary, (rows, width), generator=generator)
    lengths = torch.randint(0, width + 1, (rows,), generator=generator)
    mask = torch.arange(width) < lengths[:, None]
    rewards = torch.randn(rows, width, generator=generator, dtype=torch.float64) * mask
    return ids * mask, mask, rewards


def slow_values(ids, mask, rewards, size, gamma, shrinkage, group_shrinkage):
    """The estimator of the module's first lines, token by token."""
    completions = [row[kept].tolist() for row, kept in zip(ids, mask, strict=True)]
    earned = [row[kept].tolist() for row, kept in zip(rewards, mask, strict=True)]

    def to_go(row, step):
        return sum(gamma ** (later - step) * earned[row][later] for later in range(step, len(earned[row])))

    def mean_of(near, far, step):
        """The mean over the others of the group, shrunk to that over other prompts; None without any."""
        total, weight = sum(to_go(other, step) for other in near), len(near)
        if far and group_shrinkage:
            total += group_shrinkage * np.mean([to_go(other, step) for other in far])
            weight += group_shrinkage
        return total / weight if weight else None

    found = np.zeros(tuple(mask.shape))
    for row, completion in enumerate(completions):
        first = row - row % size
        others = [other for other in range(first, first + size) if other != row]
        elsewhere = [other for other in range(len(completions)) if not first <= other < first + size]
        start = mean_of(others, elsewhere, 0)
        for step in range(len(completion)):
            alive = [other for other in others if len(completions[other]) > step]
            alike = [other for other in alive if completions[other][:step] == completion[:step]]
            mean = mean_of(alive, [other for other in elsewhere if len(completions[other]) > step], step)
            mean = start if mean is None else mean
            total = sum(to_go(other, step) for other in alike)
            found[row, step] = (total + shrinkage * mean) / (len(alike) + shrinkage) if step else start
    return found


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize(
    ("gamma", "shrinkage", "group_shrinkage"), [(1.0, 1.0, 4.0), (0.9, 0.5, 0.0), (0.0, 3.0, 0.7)]
)
def test_values_equal_a_loop_over_tokens(groups, gamma, shrinkage, group_shrinkage):
    for seed in range(5):
        ids, mask, rewards = random_groups(seed, groups)
        settings = 4, shrinkage, group_shrinkage
        found = sibling_values(returns_to_go(rewards, mask, gamma), ids, mask, *settings)
        expected = slow_values(ids, mask, rewards, 4, gamma, shrinkage, group_shrinkage)
        np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize(("groups", "words", "length"), [(1, (1, 2), 3), (2, (1,), 3)])
def test_the_gradient_with_these_values_is_that_of_the_expected_return(groups, words, length):
    """Exactly: every rollout of groups of two completions of at most ``length`` tokens, weighted by its
    probability."""
    end = 0
    generator = torch.Generator().manual_seed(0)
    states = [
        state for n in range(length) for state in itertools.product(words, repeat=n)
    ]  # no token ends it
    logits = torch.randn(len(states), 1 + len(words), generator=generator, dtype=torch.float64)
    logits.requires_grad_()
    place = {state: number for number, state in enumerate(states)}
    finished = [state for state in itertools.product((end, *words), repeat=length) if end not in state]
    finished += [(*state, end) for state in states]
    pay = {ids: torch.randn(len(ids), generator=generator, dtype=torch.float64) for ids in finished}
    # A reward of a token is one of the prefix that it ends.
    pay = {
        ids: torch.stack(
            [pay[next(c for c in finished if c[: t + 1] == ids[: t + 1])][t] for t in range(len(ids))]
        )
        for ids in finished
    }

    def log_probs(ids):
        table = logits.log_softmax(-1)
        return torch.stack([table[place[ids[:t]], token] for t, token in enumerate(ids)])

    value = sum(log_probs(ids).sum().exp() * pay[ids].sum() for ids in finished)
    (expected,) = torch.autograd.grad(value, logits)

    found = 0.0
    for rollout in itertools.product(finished, repeat=2 * groups):
        mask = torch.tensor([[t < len(ids) for t in range(length)] for ids in rollout])
        ids = torch.tensor([[*ids, *[0] * (length - len(ids))] for ids in rollout])
        rewards = torch.stack([torch.nn.functional.pad(pay[c], (0, length - len(c))) for c in rollout])
        returns = returns_to_go(rewards, mask, 1.0)
        advantages = returns - sibling_values(returns, ids, mask, 2, 1.0, 2.0)
        each = [log_probs(c) for c in rollout]
        weight = sum(part.sum() for part in each).exp().detach()
        steps = sum((lp * a[: len(lp)]).sum() for lp, a in zip(each, advantages, strict=True))
        found = found + weight * steps / len(rollout)
    (gradient,) = torch.autograd.grad(found, logits)
    torch.testing.assert_close(gradient, expected, atol=1e-12, rtol=1e-9)
    assert expected.abs().max() > 0.01


def test_what_is_explained_is_measured_against_returns_without_values():
    ids, mask, rewards = random_groups(3, groups=6, width=8)
    returns = returns_to_go(rewards, mask, 1.0)
    values = sibling_values(returns, ids, mask, 4, 1.0, 4.0)
    means = group_means(returns, mask, 4)
    found = explained({"": values, "siblings": values, "group_mean": means}, returns, mask)
    name = "explained_variance/lambda_1"
    assert found[name] == found[f"{name}/siblings"] == explained_variance(values, returns, mask)
    assert found[f"{name}/group_mean"] == explained_variance(means, returns, mask)
    lengths = mask.sum(1)
    for quarter in range(4):
        within = torch.zeros_like(mask)
        for row, length in enumerate(lengths.tolist()):
            for step in range(length):
                within[row, step] = math.floor(4 * step / length) == quarter
        share = explained_variance(values, returns, within)
        assert found[f"{name}/quarter_{quarter + 1}"] == pytest.approx(share)


# ------------------------------------------------------------------------------------------------ training


def test_training_on_siblings_has_no_critic(tiny_models, tmp_path):
    trainer = ppo_trainer(tiny_models("llama"), tmp_path / "out", siblings=True, lam=1.0, num_generations=4)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "reward" in row]
    assert trainer.critic is None and not list(tmp_path.rglob("value*.safetensors"))
    for row in rows:
        assert "loss/value" not in row and "clip_ratio/value" not in row
        assert row["loss"] == row["loss/policy"]


@pytest.mark.parametrize("separate", [False, True], ids=["shared", "separate"])
def test_warm_up_trains_the_critic_alone(tiny_models, tmp_path, separate):
    changes = {"critic_warmup_rollouts": 1, "separate": separate, "lora": True, "weight_decay": 0.1}
    trainer = ppo_trainer(tiny_models("llama"), tmp_path / "out", **changes)
    critic = {id(parameter) for parameter in trainer.critic.parameters()}
    policy = [p for p in trainer.model.parameters() if p.requires_grad and id(p) not in critic]
    learnt = [p for p in trainer.critic.parameters() if p.requires_grad]
    seen = []

    def look(*args, **kwargs):
        seen.append([[p.detach().clone() for p in parameters] for parameters in (policy, learnt)])
        return original(*args, **kwargs)

    original, trainer._generate_and_score_completions = trainer._generate_and_score_completions, look
    trainer.train()
    (start, other_start), (warm, other_warm) = seen  # before the first rollout, and before the second
    assert all(torch.equal(*pair) for pair in zip(start, warm, strict=True))
    assert not any(torch.equal(*pair) for pair in zip(other_start, other_warm, strict=True))
    assert not any(torch.equal(*pair) for pair in zip(warm, policy, strict=True))


def test_a_residual_critic_starts_from_the_siblings_values(tiny_models, tmp_path):
    settings = {"num_generations": 4, "pay": token_values}
    plain = ppo_trainer(tiny_models("llama"), tmp_path / "a", **settings)
    residual = ppo_trainer(tiny_models("llama"), tmp_path / "b", critic_target="residual", **settings)
    found = []
    for trainer in (plain, residual):
        trainer.model.train()
        completions = [[50, 60, 1], [50, 61, 1], [50, 60, 70, 1], [9, 1]] * 2
        trainer._generate_single_turn = lambda prompts, *_, all=completions: (all, None)
        rows = [dict(trainer.train_dataset[row]) for row in (0, 0, 0, 0, 1, 1, 1, 1)]
        found.append(trainer._generate_and_score_completions(rows))
    known = found[1]["known_values"]
    assert not found[0]["known_values"].any() and known.abs().max() > 0.01
    torch.testing.assert_close(found[1]["old_values"] - known, found[0]["old_values"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"value_model": "siblings", "critic_warmup_rollouts": 2}, "critic_warmup_rollouts needs a critic"),
        ({"value_model": "siblings", "critic_target": "residual"}, "critic_target residual needs a critic"),
        ({"value_model": "siblings", "num_generations": 1}, "set num_generations above 1"),
        ({"value_model": "shared", "critic_warmup_rollouts": 64}, "leaves none of num_rollouts"),
    ],
)
def test_settings_that_contradict_each_other(settings, message):
    with pytest.raises(ValueError, match=message):
        PpoAlgo(**settings).validate()
