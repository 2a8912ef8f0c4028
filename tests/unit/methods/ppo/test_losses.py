"""PPO's arithmetic against independent NumPy loops, closed forms and finite differences."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.ppo_formulas import numpy_gae, numpy_policy_loss, numpy_value_loss
from utils.methods.ppo.losses import (
    KLController,
    explained_variance,
    gae,
    k1,
    k3,
    moments,
    policy_loss,
    value_loss,
    whiten,
)

# ----------------------------------------------------------------------------- NumPy: one loop per definition


@st.composite
def batches(draw, fields: int):
    """Arrays [B, C] float64 with garbage behind each completion's end, and the lengths, 0 and 1 included."""
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    lengths = [draw(st.integers(0, columns)) for _ in range(rows)]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([1e-3, 1.0, 30.0]))
    return [rng.normal(size=(rows, columns)) * scale for _ in range(fields)], lengths


def mask_of(lengths, columns):
    return torch.arange(columns) < torch.tensor(lengths)[:, None]


def masked(array, lengths):
    return np.concatenate([row[:length] for row, length in zip(array, lengths, strict=True)])


# ------------------------------------------------------------------------------------------ advantages


@given(batches(2), st.sampled_from([0.0, 0.5, 0.9, 1.0]), st.sampled_from([0.0, 0.95, 1.0]))
def test_gae_equals_its_definition(batch, gamma, lam):
    (rewards, values), lengths = batch
    mask = mask_of(lengths, rewards.shape[1])
    found = gae(torch.tensor(rewards), torch.tensor(values), mask, gamma=gamma, lam=lam)
    expected = numpy_gae(rewards, values, lengths, gamma, lam)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-9)
    assert not found[~mask].any()
    single = gae(torch.tensor(rewards).float(), torch.tensor(values).float(), mask, gamma=gamma, lam=lam)
    scale = max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(single.numpy() / scale, expected / scale, atol=1e-6)


@given(batches(2))
def test_with_lambda_1_returns_do_not_depend_on_the_values(batch):
    """And are the sums of what is still to come; with lambda 0 advantages are one-step errors."""
    (rewards, values), lengths = batch
    mask = mask_of(lengths, rewards.shape[1])
    rewards, values = torch.tensor(rewards) * mask, torch.tensor(values) * mask
    returns = gae(rewards, values, mask, gamma=1.0, lam=1.0) + values
    to_come = rewards.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(returns, to_come * mask, rtol=1e-9, atol=1e-9)


def test_the_true_values_leave_no_advantage():
    """Rewards that the critic foresees exactly: every temporal-difference error is 0, whatever lambda."""
    mask = mask_of([4, 1, 0, 3], 4)
    rewards = torch.randn(4, 4, dtype=torch.float64) * mask
    for gamma in (1.0, 0.9):
        values = torch.zeros(4, 5, dtype=torch.float64)
        for step in reversed(range(4)):
            values[:, step] = (rewards[:, step] + gamma * values[:, step + 1]) * mask[:, step]
        for lam in (0.0, 0.7, 1.0):
            assert gae(rewards, values[:, :4], mask, gamma=gamma, lam=lam).abs().max() < 1e-12


def test_what_lies_behind_the_end_does_not_matter():
    """A cut-off completion's state after its last token has no value: no bootstrap."""
    mask = mask_of([2, 3], 3)
    rewards, values = torch.randn(2, 3), torch.randn(2, 3)
    expected = gae(rewards * mask, values * mask, mask, gamma=0.9, lam=0.8)
    assert torch.equal(gae(rewards, values, mask, gamma=0.9, lam=0.8), expected)
    assert expected[0, 1] == rewards[0, 1] - values[0, 1]


# ---------------------------------------------------------------------------------------- statistics


@given(batches(2))
def test_whitening_equals_numpy_over_the_unmasked_entries(batch):
    (numbers, others), lengths = batch
    mask = mask_of(lengths, numbers.shape[1])
    entries = masked(numbers, lengths)
    count, mean, variance = moments(torch.tensor(numbers), mask)
    assert count == len(entries)
    if len(entries) > 1:
        assert mean == pytest.approx(entries.mean(), rel=1e-9, abs=1e-12)
        assert variance == pytest.approx(entries.var(ddof=1), rel=1e-9)
        spread = entries.std(ddof=1)
        found = whiten(torch.tensor(numbers), mask)
        np.testing.assert_allclose(found[mask].numpy(), (entries - entries.mean()) / spread, atol=1e-6)
        scaled = whiten(torch.tensor(numbers), mask, shift_mean=False)
        np.testing.assert_allclose(scaled[mask].numpy(), entries / spread, rtol=1e-6)
        assert not found[~mask].any() and not scaled[~mask].any()
        targets = masked(others, lengths)
        expected = 1 - (targets - entries).var() / targets.var()
        explained = explained_variance(torch.tensor(numbers), torch.tensor(others), mask)
        assert explained == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.1, -7.3, 1e6])
@pytest.mark.parametrize("lengths", [[3, 3], [1, 0], [0, 0]], ids=["full", "one token", "none"])
def test_equal_entries_neither_explode_nor_change_sign(value, lengths):
    mask = mask_of(lengths, 3)
    # 0.1 is no sum of powers of two: rounding gives it a spread of some 1e-9, which is none.
    numbers = torch.full((2, 3), value) * mask
    assert not whiten(numbers, mask).any()
    assert torch.equal(whiten(numbers, mask, shift_mean=False), numbers)
    assert math.isnan(explained_variance(numbers, numbers, mask))


def test_a_rollout_over_two_processes_is_one_rollout():
    """Two threads that add their tensors up, as an all-reduce does, against one that has them all."""
    values, returns, mask = torch.randn(6, 5), torch.randn(6, 5), mask_of([5, 0, 3, 1, 4, 2], 5)
    together, spoken = threading.Barrier(2), [None, None]

    def process(number: int):
        def total(tensor):
            spoken[number] = tensor
            together.wait()
            added = spoken[0] + spoken[1]
            together.wait()
            return added

        rows = slice(3 * number, 3 * number + 3)
        return (
            whiten(values[rows], mask[rows], total=total),
            explained_variance(values[rows], returns[rows], mask[rows], total),
        )

    with ThreadPoolExecutor(2) as pool:
        (first, explained), (second, the_same) = pool.map(process, range(2))
    torch.testing.assert_close(torch.cat([first, second]), whiten(values, mask))
    assert explained == the_same == pytest.approx(explained_variance(values, returns, mask), rel=1e-9)


def test_explained_variance_of_known_critics():
    returns, mask = torch.randn(6, 5), mask_of([5, 0, 3, 1, 4, 2], 5)
    assert explained_variance(returns, returns, mask) == 1.0
    assert explained_variance(torch.ones(6, 5), returns, mask) == pytest.approx(0.0, abs=1e-6)
    assert explained_variance(-returns, returns, mask) == pytest.approx(-3.0)


# --------------------------------------------------------------------------------------------- losses


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.05, 0.2, 1.0]), st.sampled_from([0.01, 0.3]))
def test_losses_equal_their_definitions(seed, c, spread):
    step, old, third = np.random.default_rng(seed).normal(size=(3, 3, 4))
    new = old + spread * step
    for function, reference in ((policy_loss, numpy_policy_loss), (value_loss, numpy_value_loss)):
        loss, clipped = function(*(torch.tensor(array) for array in (new, old, third)), c)
        expected, clips = reference(new, old, third, c)
        np.testing.assert_allclose(loss.numpy(), expected, atol=1e-12)
        assert np.array_equal(clipped.numpy(), clips)


def test_clipped_elements_have_no_gradient():
    """Beyond the range on the side that the advantage rewards, and only there."""
    ratios, advantages = torch.meshgrid(
        torch.tensor([0.7, 0.9, 1.0, 1.1, 1.3]), torch.tensor([-1.0, 1.0]), indexing="ij"
    )
    log_probs = ratios.log().requires_grad_()
    loss, clipped = policy_loss(log_probs, torch.zeros_like(ratios), advantages, 0.2)
    loss.sum().backward()
    expected = torch.tensor([[1, 0], [0, 0], [0, 0], [0, 0], [0, 1]], dtype=torch.bool)
    assert torch.equal(clipped, expected)
    assert torch.equal(log_probs.grad == 0, expected)
    free = -advantages * ratios  # the gradient of -A exp(x) is itself
    torch.testing.assert_close(log_probs.grad[~expected], free[~expected])


def test_divergence_estimators_have_the_divergence_as_mean():
    p, q = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]], dtype=torch.float64)
    log_ratio = (p / q).log()
    divergence = float((p * log_ratio).sum())
    for estimator in (k1, k3):
        assert (p * estimator(log_ratio)).sum() == pytest.approx(divergence, rel=1e-12)
    assert (k3(log_ratio) >= 0).all() and (k1(log_ratio) < 0).any()
    small = torch.tensor([1e-4, -1e-4])  # float32: no cancellation
    torch.testing.assert_close(k3(small), small.square() / 2, rtol=1e-3, atol=0)


def test_the_controller_follows_its_target():
    """Ziegler et al.'s rule: proportional to the relative error, held within 0.2, per n / horizon."""
    controller = KLController(coef=0.1, target=4.0, horizon=100)
    for kl, error in ((4.4, 0.1), (8.0, 0.2), (-1.0, -0.2), (4.0, 0.0)):
        before = controller.coef
        controller.update(kl, completions=10)
        assert controller.coef == pytest.approx(before * (1 + error * 0.1), rel=1e-12)
    fixed = KLController(coef=0.1)
    fixed.update(100.0, completions=10)
    assert fixed.coef == 0.1
