"""RLOO against slow NumPy and stock TRL: advantages, losses, rollout log, variance check."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from trl import RLOOTrainer

import utils.methods.rloo.trainer as rloo
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
from tests.support.training_stages import Killed, run_script, stage_context, stage_inputs, tree
from utils.frame.files import UserError, read_jsonl
from utils.frame.typed_settings import check
from utils.methods.ppo.settings import PpoAlgo
from utils.methods.rloo import gradient_variance as variance
from utils.methods.rloo.settings import RlooAlgo
from utils.methods.rloo.trainer import SharedPrefixRLOOTrainer
from utils.rollouts.advantages import baselines
from utils.rollouts.rollout_log import RolloutLog, by_group
from utils.rollouts.shared_prefix_trainer import SharedPrefix
from utils.rollouts.start import RenderedPrompts

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


class StockRLOO(RenderedPrompts, SharedPrefix, RLOOTrainer):
    """TRL's own advantages and losses, on the same scores."""


@pytest.fixture
def make(tiny_models, tmp_path):
    def build(kind=SharedPrefixRLOOTrainer, **changes):
        return group_trainer(kind, tiny_models("llama"), tmp_path / "out", **changes)

    return build


# --------------------------------------------------------------------------------- advantages and losses


def slow_baselines(rewards: list[list[float]], kind: str) -> list[list[float]]:
    def of(group: list[float], place: int) -> float:
        others = [reward for other, reward in enumerate(group) if other != place]
        return {"loo": sum(others) / len(others), "mean": sum(group) / len(group), "none": 0.0}[kind]

    return [[of(group, place) for place in range(len(group))] for group in rewards]


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


# ------------------------------------------------------------------------------- variance, in closed form


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


# ------------------------------------------------------------------------------------------ whole stages

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


@pytest.fixture(scope="module")
def inputs(tiny_models, tmp_path_factory):
    return stage_inputs(tmp_path_factory.mktemp("inputs"), tiny_models("llama"))


@pytest.fixture
def context(inputs, tiny_models, tmp_path):
    def make(name, algo=ALGO, **options):
        return stage_context(tmp_path / name, inputs, tiny_models("llama"), algo, **options)

    return make


def test_the_check_measures_the_gradients_of_the_trainer(context, monkeypatch):
    """Against gradients of whole, unpadded sequences by each estimator's own advantages."""
    ctx = context("out", reward="combined")
    trainer, _ = rloo.build_rloo_trainer(ctx, *loaded(ctx))
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


def loaded(ctx):
    from utils.data.records import load_records
    from utils.rewards.spec import load_reward_spec

    return load_records(ctx.inputs["train"]), load_reward_spec(ctx.inputs["reward_spec"])


@pytest.mark.usefixtures("unrendered")
def test_the_check_does_not_change_the_training(context):
    """With and without it, from other global random states: the same files and metrics (the teacher's cache
    counts too), the check's own left out."""
    trees, metrics = [], []
    for name, prompts, seed in (("with", 4, 1), ("without", 0, 2)):
        ctx = context(name, replace(ALGO, num_rollouts=2), variance_prompts=prompts)
        torch.manual_seed(seed)
        run_script("07", ctx)
        trees.append(tree(ctx.out))
        assert ("gradient_variance_ratio" in ctx.metrics) == bool(prompts)
        metrics.append(dict(ctx.metrics))
        for name in ("gradient_variance_ratio", "gradient_variance_ratio_ci95", "advantage_sign_agreement"):
            metrics[-1].pop(name, None)
    check = json.loads(trees[0].pop("logs/gradient_variance.json"))
    assert trees[0] == trees[1]
    assert metrics[0] == metrics[1] and metrics[0]["teacher_cache"]["misses"] > 0
    assert check["prompts"] == 4 and check["estimators"]["leave_one_out"]["variance"] > 0
    assert check["ratio_to_reinforce"]["value"] > 0


def kill(*args, **kwargs):
    raise Killed


def test_too_large_gradients_are_said_to_be_left_out(context, monkeypatch):
    ctx = context("out")
    trainer, _ = rloo.build_rloo_trainer(ctx, *loaded(ctx))
    monkeypatch.setattr(variance, "GRADIENT_BYTES", 10_000)
    variance.check_gradient_variance(ctx, trainer)
    assert "gradient variance not measured" in (ctx.out / "stage.log").read_text()
    assert not ctx.metrics and not (ctx.out / "logs").exists()


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
