"""Normalisers against NumPy formulas, and the traps that an earlier implementation fell into."""

import json
import typing

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from utils.frame.files import UserError
from utils.rewards.normalisers import MEMORY, NAMES, SCOPES, Normaliser
from utils.rewards.spec import IntrinsicSection

SCALED = ("mean_std", "z_score", "min_max", "robust")


def reference(name: str, x: np.ndarray, center: bool) -> np.ndarray:
    """The batch formulas, unclipped; x holds the unmasked entries."""
    quartile_1, median, quartile_3 = np.quantile(x, [0.25, 0.5, 0.75])
    middle, spread = {
        "none": (0.0, 1.0),
        "mean_std": (x.mean(), x.std()),
        "z_score": (x.mean(), x.std()),
        "robust": (median, (quartile_3 - quartile_1) / 1.349 or x.std()),
        "min_max": ((x.min() + x.max()) / 2, np.ptp(x) / 2 if center else np.abs(x).max()),
    }[name]
    return (x - middle if center and name != "none" else x) / spread


def batch(seed: int = 0, lengths: tuple[int, ...] = (5, 3, 0, 1, 7)) -> tuple[torch.Tensor, torch.Tensor]:
    """Skewed values with NaN where masked, and the mask."""
    rng = np.random.default_rng(seed)
    mask = np.arange(max(lengths))[None] < np.array(lengths)[:, None]
    values = np.where(mask, -rng.exponential(2.0, mask.shape) + 0.5, np.nan)
    return torch.tensor(values, dtype=torch.float32), torch.tensor(mask).long()


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_batch_is_normalised_by_its_unmasked_entries(name, center):
    values, mask = batch()
    result = Normaliser(name, center=center)(values, mask)
    kept = mask.bool()
    assert result.dtype == torch.float32 and (result[~kept] == 0).all()
    expected = reference(name, values[kept].double().numpy(), center)
    np.testing.assert_allclose(result[kept].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_the_names_are_those_of_the_specification():
    hints = typing.get_type_hints(IntrinsicSection)
    assert typing.get_args(hints["normaliser"]) == NAMES and typing.get_args(hints["scope"]) == SCOPES
    for name, scope in (("zscore", "batch"), ("none", "forever")):
        with pytest.raises(ValueError, match="no normaliser"):
            Normaliser(name, scope)


# ---------------------------------------------------------------------------------- traps of the old code


@pytest.mark.parametrize("name", SCALED)
def test_a_trajectory_keeps_its_sum(name):
    """Standardised within each sequence, every sum would be 0 and no completion better than another."""
    values = torch.tensor([[1.0, 2.0, 3.0], [5.0, 6.0, 7.0]])
    for center in (False, True):
        sums = Normaliser(name, center=center)(values, torch.ones(2, 3)).sum(1)
        assert sums[1] - sums[0] > 1
    assert sums.abs().min() > 1


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("name", SCALED)
def test_a_single_token_has_no_spread_and_spoils_no_state(name, scope):
    """The unbiased deviation of one entry is NaN, and stayed in the moving average for ever."""
    normaliser = Normaliser(name, scope, center=True)
    lone = normaliser(torch.tensor([[3.0, 9.0]]), torch.tensor([[1, 0]]))
    assert lone.tolist() == [[0.0, 0.0]]
    values, mask = batch()
    result = normaliser(values, mask)
    assert result.isfinite().all() and result.abs().max() > 0.5
    assert all(np.isfinite(list(normaliser.state_dict().values())))


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("name", SCALED)
def test_equal_rewards_are_no_reward(name, scope):
    """min_max gave them all its lower bound. Equal to float32 precision is equal: 20 and the next number."""
    normaliser = Normaliser(name, scope, center=False, clip=3.0)
    after_20 = torch.nextafter(torch.tensor(20.0), torch.tensor(21.0)).item()
    for entries in ([20.0] * 4, [20.0, after_20] * 3):
        assert (normaliser(torch.tensor([entries]), torch.ones(1, len(entries))) == 0).all()


def test_min_max_stays_in_its_bounds_whatever_comes():
    normaliser = Normaliser("min_max", "running", center=True, clip=2.0)
    first = normaliser(torch.tensor([[0.0, 1.0, 4.0]]), torch.ones(1, 3))
    assert first.tolist() == [[-2.0, -1.0, 2.0]]
    later = normaliser(torch.tensor([[-50.0, 2.0, 50.0]]), torch.ones(1, 3), update=False)
    assert later.tolist() == [[-2.0, 0.0, 2.0]]


def test_robust_is_the_deviation_of_normal_numbers_and_ignores_outliers():
    values = torch.randn(1, 20_001, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 5
    scaled = Normaliser("robust", center=True)(values, torch.ones_like(values))
    assert scaled.std().item() == pytest.approx(1, abs=0.03)
    values[0, 0] = 1e6
    assert Normaliser("robust", center=True)(values, torch.ones_like(values))[0, 1:].std().item() < 1.05


def test_robust_without_quartiles_apart_falls_back_to_the_deviation():
    values = torch.tensor([[1.0, 1.0, 1.0, 1.0, 9.0]])
    result = Normaliser("robust", center=True)(values, torch.ones(1, 5))
    np.testing.assert_allclose(result[0], [0, 0, 0, 0, 8 / np.std([1, 1, 1, 1, 9])], rtol=1e-6)


def test_the_running_deviation_sees_shifts_between_rollouts():
    """An average of each rollout's deviation is 0 here; the entries' own is 5."""
    normaliser = Normaliser("z_score", "running")
    for value in (0.0, 10.0):
        result = normaliser(torch.full((1, 4), value), torch.ones(1, 4))
    assert result.tolist() == [[2.0] * 4]


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
def test_a_reward_that_is_not_finite_is_an_error(name, scope, broken):
    normaliser = Normaliser(name, scope)
    values, mask = batch()
    normaliser(values, mask)
    before = normaliser.state_dict()
    values[1, 2] = values[4, 0] = values[4, 1] = broken
    with pytest.raises(UserError, match=r"3 of 16 rewards .* in completions 1, 4 of the rollout") as caught:
        normaliser(values, mask)
    assert "\n" not in str(caught.value)
    assert normaliser.state_dict() == before


# --------------------------------------------------------------------------------------------- properties


finite = st.floats(-1e4, 1e4, width=32)


@given(
    st.sampled_from(NAMES),
    st.sampled_from(SCOPES),
    st.booleans(),
    st.none() | st.floats(0.1, 10),
    st.lists(st.lists(finite, max_size=8), min_size=1, max_size=5),
)
def test_results_are_finite_and_within_the_bound(name, scope, center, clip, rollouts):
    normaliser = Normaliser(name, scope, center=center, clip=clip)
    for entries in rollouts:
        values = torch.tensor([entries], dtype=torch.float32)
        result = normaliser(values, torch.ones_like(values))
        assert result.isfinite().all() and result.shape == values.shape
        if clip is not None:
            assert (result.abs() <= clip * (1 + 1e-6)).all()
        elif name == "min_max":
            assert (result.abs() <= 1).all()


@given(st.sampled_from(SCALED), st.booleans(), st.floats(1e-3, 1e3), st.integers(0, 1000))
def test_the_unit_of_the_rewards_does_not_matter(name, center, factor, seed):
    values, mask = batch(seed)
    normaliser = Normaliser(name, center=center)
    torch.testing.assert_close(
        normaliser(values * factor, mask), normaliser(values, mask), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name", SCALED)
def test_without_centring_sums_stay_proportional(name):
    """So identities and cancellations of the raw sums survive; with it, a token is worth a constant more."""
    values, mask = batch()
    kept, lengths = mask.bool(), mask.sum(1)
    raw = values.where(kept, 0).sum(1)
    plain = Normaliser(name)(values, mask).sum(1)
    scale = plain[0] / raw[0]
    torch.testing.assert_close(plain, raw * scale, rtol=1e-5, atol=1e-5)
    centred = Normaliser(name, center=True)(values, mask)
    scale = (centred[0, 0] - centred[0, 1]) / (values[0, 0] - values[0, 1])
    per_token = centred[0, 0] - scale * values[0, 0]
    assert per_token.abs() > 0.1
    torch.testing.assert_close(centred.sum(1), raw * scale + lengths * per_token, rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------------ running state


@given(st.lists(st.lists(finite, min_size=1, max_size=6), min_size=1, max_size=8))
def test_running_z_score_is_that_of_all_entries_so_far(rollouts):
    normaliser = Normaliser("z_score", "running", center=True)
    for entries in rollouts:
        values = torch.tensor([entries], dtype=torch.float64)
        result = normaliser(values, torch.ones_like(values))
    everything = np.concatenate(rollouts)
    if everything.std() > 1e-3 * np.abs(everything).max():
        expected = (np.array(rollouts[-1]) - everything.mean()) / everything.std()
        np.testing.assert_allclose(result[0].numpy(), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["mean_std", "robust", "min_max"])
def test_running_statistics_weigh_entries_by_the_age_of_their_rollout(name):
    """Against weights written out: MEMORY per later rollout, for each entry (moments) or per entry of a
    rollout (quantiles and extremes, which are averaged)."""
    rng = np.random.default_rng(1)
    rollouts = [rng.normal(5 * k, 1 + k, size=3 + 20 * (k % 2)) for k in range(6)]
    normaliser = Normaliser(name, "running", center=True)
    for entries in rollouts:
        values = torch.tensor(entries)[None]
        result = normaliser(values, torch.ones_like(values))[0].numpy()
    ages = MEMORY ** np.arange(len(rollouts))[::-1]
    if name == "mean_std":
        weights = np.concatenate([np.full(len(x), age) for x, age in zip(rollouts, ages, strict=True)])
        everything = np.concatenate(rollouts)
        mean = np.average(everything, weights=weights)
        spread = np.sqrt(np.average((everything - mean) ** 2, weights=weights))
        expected = (rollouts[-1] - mean) / spread
    else:
        weights = [age * len(x) for x, age in zip(rollouts, ages, strict=True)]
        levels = [0, 0.5, 1] if name == "min_max" else [0.25, 0.5, 0.75]
        low, middle, high = np.average([np.quantile(x, levels) for x in rollouts], axis=0, weights=weights)
        if name == "min_max":
            expected = np.clip((rollouts[-1] - (low + high) / 2) / ((high - low) / 2), -1, 1)
        else:
            expected = (rollouts[-1] - middle) / ((high - low) / 1.349)
    np.testing.assert_allclose(result, expected, rtol=1e-9)


def test_a_lone_token_among_many_hardly_moves_a_running_range():
    normaliser = Normaliser("min_max", "running")
    values = torch.linspace(-1, 1, 1000)[None]
    normaliser(values, torch.ones_like(values))
    normaliser(torch.tensor([[0.0]]), torch.ones(1, 1))
    assert normaliser.state.high == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("name", NAMES)
def test_reading_without_updating(name):
    values, mask = batch()
    normaliser = Normaliser(name, "running", center=True)
    # Nothing seen yet: the batch's own statistics, and still nothing kept.
    torch.testing.assert_close(
        normaliser(values, mask, update=False), Normaliser(name, center=True)(values, mask)
    )
    assert normaliser.state.count == 0
    learnt = normaliser(values, mask)
    before = normaliser.state_dict()
    shifted = normaliser(values + 1, mask, update=False)
    assert normaliser.state_dict() == before
    if name in ("mean_std", "robust", "z_score"):
        assert (shifted - learnt)[mask.bool()].min() > 0.1


def test_a_rollout_without_tokens_is_legal():
    normaliser = Normaliser("mean_std", "running")
    for shape in ((2, 3), (2, 0), (0, 0)):
        assert normaliser(torch.full(shape, float("nan")), torch.zeros(shape)).shape == shape
    assert normaliser.state.count == 0


@pytest.mark.parametrize("name", SCALED)
def test_a_saved_state_goes_on_bit_by_bit(name):
    first, second = Normaliser(name, "running"), Normaliser(name, "running")
    for seed in range(3):
        first(*batch(seed))
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for seed in range(3, 6):
        assert torch.equal(first(*batch(seed)), second(*batch(seed)))
    assert first.state_dict() == second.state_dict()
    for damaged in ({}, first.state_dict() | {"count": float("nan")}):
        with pytest.raises(ValueError, match="not the state"):
            second.load_state_dict(damaged)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("name", NAMES)
def test_parts_are_normalised_as_the_whole(name, scope):
    """Each process has half of the rows, in order; the second has no unmasked entry in one rollout."""
    generator = torch.Generator().manual_seed(0)
    alone, parts = Normaliser(name, scope), [Normaliser(name, scope) for _ in range(2)]
    for rollout in range(3):
        values = torch.randn((6, 4), generator=generator)
        mask = torch.rand((6, 4), generator=generator) < 0.6
        mask[3:] &= rollout != 1
        expected = alone(values, mask)
        entries = [values[rows][mask[rows]].double() for rows in (slice(0, 3), slice(3, 6))]
        halves = [
            part(values[rows], mask[rows], True, lambda _, entries=entries: entries)
            for part, rows in zip(parts, (slice(0, 3), slice(3, 6)), strict=True)
        ]
        assert torch.equal(torch.cat(halves), expected)
    assert parts[0].state == parts[1].state == alone.state
