"""The variance of RLOO's gradient: its estimate in closed form, and the gradients it is made of."""

import itertools

import numpy as np
import pytest
import torch

from benchmarks import gradient_variance as variance
from tests.support.baselines import slow_baselines
from tests.support.training_stages import stage_context, stage_inputs
from utils.data.records import load_records
from utils.frame.files import UserError
from utils.methods.rloo.settings import RlooAlgo
from utils.methods.rloo.trainer import build_rloo_trainer
from utils.rewards.spec import load_reward_spec
from utils.rollouts.advantages import baselines

ALGO = RlooAlgo(
    num_rollouts=4,
    learning_rate=2e-2,
    warmup_steps=0,
    per_device_train_batch_size=8,
    steps_per_generation=1,
    num_samples=4,
    num_iterations=2,
    beta=0.05,
)


def toy(size: int, offset: float = 0.0):
    """A softmax policy on 2 prompts with 3 answers each: every group's probability, and c_p and s_p of it.

    ``offset`` is added to every reward. Returns the exact trace of the covariance of each estimator's
    gradient by name, and the (probability, rewards, c, s) of all 2 * 3**size groups.
    """
    logits = torch.tensor([[0.3, -0.4, 1.1], [-0.7, 0.2, 0.0]], dtype=torch.float64, requires_grad=True)
    rewards = torch.tensor([[1.0, 0.2, -0.5], [0.0, 2.0, 0.7]], dtype=torch.float64) + offset
    groups = []
    for prompt in range(2):
        log_probs = logits[prompt].log_softmax(0)
        for answers in itertools.product(range(3), repeat=size):
            chosen = torch.tensor(answers)
            paid = rewards[prompt][chosen]
            weights = torch.stack([paid - paid.mean(), torch.ones(size, dtype=torch.float64)])
            centred, score = variance.weighted_gradients(log_probs[chosen], weights, [logits]).double()
            groups.append((0.5 * log_probs[chosen].sum().exp().item(), paid, centred, score))
    exact = {}
    for name, kind in variance.ESTIMATORS.items():
        # Straight from the definition: the gradient of each group by its own advantages.
        mean, square = torch.zeros(6, dtype=torch.float64), 0.0
        number = 0
        for prompt in range(2):
            log_probs = logits[prompt].log_softmax(0).detach()
            for answers in itertools.product(range(3), repeat=size):
                probability, paid = groups[number][:2]
                base = torch.tensor(slow_baselines([paid.tolist()], kind)[0])
                gradient = torch.zeros(2, 3, dtype=torch.float64)
                for answer, advantage in zip(answers, paid - base, strict=True):
                    gradient[prompt] -= advantage / size * log_probs.exp()
                    gradient[prompt, answer] += advantage / size
                mean += probability * gradient.flatten()
                square += probability * gradient.square().sum().item()
                number += 1
        exact[name] = square - mean.square().sum().item()
    return exact, groups


def test_the_variance_is_unbiased_by_enumeration():
    """All pairs of groups, weighted by their probability: the expected estimate is the exact variance."""
    exact, groups = toy(2)
    expected = dict.fromkeys(exact, 0.0)
    for first, second in itertools.product(groups, repeat=2):
        centred, scores, rewards = (torch.stack([first[at], second[at]]) for at in (2, 3, 1))
        found = variance.compare(centred, scores, rewards, 4, 0) if first is groups[0] else None
        dots = variance.products(torch.cat([centred, scores]))
        means = rewards.mean(1)
        for name in expected:
            scale = 2.0 if name == "leave_one_out" else 1.0
            shift = means if name == "reinforce" else torch.zeros(2, dtype=torch.float64)
            combined = variance.combined_products(dots, scale, shift)
            value = variance.total_variance(combined, torch.ones(2, dtype=torch.float64)).item()
            expected[name] += first[0] * second[0] * value
            if found is not None:
                assert found["estimators"][name]["variance"] == pytest.approx(value / 4, rel=1e-9, abs=1e-15)
    for name, value in exact.items():
        assert expected[name] == pytest.approx(value, rel=1e-6), name


def test_leave_one_out_varies_less_where_rewards_are_far_from_0_and_not_everywhere():
    """Exact: its variance does not move with the rewards; REINFORCE's does, and can be the lower one."""
    exact = {offset: toy(2, offset)[0] for offset in (-3.0, 0.0, 3.0)}
    ours = [found["leave_one_out"] for found in exact.values()]
    assert ours == pytest.approx([ours[0]] * 3)
    assert exact[0.0]["reinforce"] < ours[0] < min(exact[-3.0]["reinforce"], exact[3.0]["reinforce"])


def test_the_ratio_of_many_prompts_is_the_exact_one():
    """10 000 sampled groups of 3; intervals from 200 of them hold it, and are no wider than they must be."""
    exact, groups = toy(3)
    truth = exact["leave_one_out"] / exact["reinforce"]
    chance = torch.tensor([group[0] for group in groups])
    drawn = torch.multinomial(chance, 10_000, replacement=True, generator=torch.Generator().manual_seed(0))
    centred, scores, rewards = (torch.stack([group[at] for group in groups]) for at in (2, 3, 1))
    generator = torch.Generator().manual_seed(1)

    def ratio(rows):
        ours = variance.products(1.5 * centred[rows])
        plain = variance.products(centred[rows] + rewards[rows].mean(1, keepdim=True) * scores[rows])
        return variance.variance_ratio(ours, plain, generator)

    samples = [ratio(rows) for rows in drawn.split(200)]
    assert np.mean([found["value"] for found in samples]) == pytest.approx(truth, rel=0.03)
    inside = np.mean([low <= truth <= high for low, high in (found["ci95"] for found in samples)])
    assert 0.85 <= inside <= 1.0
    spread = np.std([found["value"] for found in samples])
    width = np.mean([found["ci95"][1] - found["ci95"][0] for found in samples])
    assert 0.6 * 3.92 * spread < width < 1.6 * 3.92 * spread


def test_moved_rewards_change_reinforce_alone():
    exact, groups = toy(3)
    centred, scores, rewards = (torch.stack([group[at] for group in groups]) for at in (2, 3, 1))
    found = variance.compare(centred, scores, rewards, 1, 0)
    for row in found["ratio_to_reinforce_with_rewards_moved"]:
        moved = variance.compare(centred, scores, rewards + row["offset"], 1, 0)
        assert row["value"] == pytest.approx(moved["ratio_to_reinforce"]["value"], rel=1e-9)
        for name in ("group_mean", "leave_one_out"):
            before, after = (result["estimators"][name]["variance"] for result in (found, moved))
            assert after == pytest.approx(before, rel=1e-9)
    assert found["ratio_to_group_mean"]["value"] == pytest.approx(9 / 4)  # (G / (G - 1)) squared


def test_nothing_that_varies_gives_no_ratio():
    zeros, rewards = torch.zeros(3, 5), torch.zeros(3, 4)
    found = variance.compare(zeros, zeros, rewards, 2, 0)
    assert found["ratio_to_reinforce"] == {"value": None, "ci95": None, "n": 3}
    assert found["groups_without_spread"] == 1.0
    assert found["estimators"]["leave_one_out"]["order_agreement"] is None
    assert "nothing to compare" in variance.sentence(found)


def test_signs_and_order_are_told_apart():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.5, 0.5], [2.0, 1.0, 3.0, 2.0]])
    loo = (rewards.flatten() - baselines(rewards.flatten(), 4, "loo")).view_as(rewards)
    assert variance.sign_agreement(loo, rewards) == variance.order_agreement(loo, rewards) == 1.0
    # The rewards themselves are never negative: right for 1.0 of the first group, none of the second, ...
    assert variance.sign_agreement(rewards, rewards) == pytest.approx((1 + 0 + 1) / 12)
    assert variance.order_agreement(rewards, rewards) == 1.0
    assert variance.order_agreement(-rewards, rewards) == 0.0
    swapped = loo.clone()
    swapped[2, [1, 2]] = loo[2, [2, 1]]
    assert variance.order_agreement(swapped, rewards) == pytest.approx(3 / 8)


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(0.4, 0.9, "lower"), (0.8, 1.1, "not shown"), (1.1, 2, "hi")]
)
def test_the_line_says_what_was_found(low, high, verdict):
    found = {
        "prompts": 64,
        "samples_per_prompt": 8,
        "prompts_per_rollout": 16,
        "ratio_to_reinforce": {"value": (low + high) / 2, "ci95": [low, high], "n": 64},
        "estimators": {"leave_one_out": {"sign_agreement": 0.995}},
        "largest_share_of_one_prompt": 0.4,
    }
    line = variance.sentence(found)
    assert f"one makes up 40 %): {verdict}" in line and "99.5 %" in line and "\n" not in line


# ------------------------------------------------------------------------------------------- on a policy


@pytest.fixture(scope="module")
def inputs(tiny_models, tmp_path_factory):
    return stage_inputs(tmp_path_factory.mktemp("inputs"), tiny_models("llama"))


@pytest.fixture
def policy(inputs, tiny_models, tmp_path):
    """The context of 07 on a tiny model, and its trainer."""
    ctx = stage_context(tmp_path / "out", inputs, tiny_models("llama"), ALGO)
    records, spec = load_records(ctx.inputs["train"]), load_reward_spec(ctx.inputs["reward_spec"])
    return ctx, build_rloo_trainer(ctx, records, spec)[0]


def test_the_check_measures_the_gradients_of_the_trainer(policy, monkeypatch):
    """Against gradients of whole, unpadded sequences by each estimator's own advantages."""
    ctx, trainer = policy
    seen = []
    real = variance.completion_log_probs
    monkeypatch.setattr(
        variance, "completion_log_probs", lambda trainer, batch: seen.append(batch) or real(trainer, batch)
    )
    paid = []
    sample = variance.sample_groups
    monkeypatch.setattr(
        variance, "sample_groups", lambda *args: paid.append(sample(*args)[1]) or sample_again(args, sample)
    )

    def sample_again(args, sample):
        generator = args[2]
        generator.manual_seed(generator.initial_seed())  # the same completions as those whose pay was noted
        groups, again = sample(*args)
        paid[-1] = again
        return groups, again

    trainer.model.train()  # dropout would be on
    found = variance.measure(ctx, trainer, 4)
    assert trainer.model.training
    assert found["prompts"] == len(seen) == 4 and found["prompts_per_rollout"] == 2
    rewards = torch.cat(paid).double()
    model = trainer.model.eval()
    parameters = [value for value in model.parameters() if value.requires_grad]
    gradients = {name: [] for name in variance.ESTIMATORS}
    for batch, reward in zip(seen, rewards, strict=True):
        singles = []
        for row in range(4):
            prompt, completion = batch.prompt_ids[row], batch.completion_ids[row]
            completion = completion[batch.completion_mask[row].bool()]
            logits = model(torch.cat([prompt, completion])[None]).logits[0] / trainer.temperature
            picked = logits[len(prompt) - 1 : -1].log_softmax(-1)
            value = picked.gather(1, completion[:, None]).sum()
            singles.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)]).double())
        for name, kind in variance.ESTIMATORS.items():
            advantages = reward - torch.tensor(slow_baselines([reward.tolist()], kind)[0])
            gradients[name].append((advantages[:, None] * torch.stack(singles)).mean(0))
    for name, rows in gradients.items():
        expected = torch.stack(rows).var(0, correction=1).sum().item() / 2
        assert found["estimators"][name]["variance"] == pytest.approx(expected, rel=1e-4), name
    assert found["estimators"]["leave_one_out"]["sign_agreement"] == 1.0


def test_gradients_that_would_not_fit_are_refused(policy, monkeypatch):
    monkeypatch.setattr(variance, "GRADIENT_BYTES", 100_000)
    with pytest.raises(
        UserError, match="gradients of 8 prompts cannot be compared: give 2 to [0-9]+ --prompts"
    ):
        variance.measure(*policy, 64)
    with pytest.raises(UserError, match="gradients of 1 prompts"):
        variance.measure(*policy, 1)
