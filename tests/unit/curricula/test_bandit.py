"""SEC against an independent NumPy simulation, on bandits whose best arm moves, and at the extremes."""

import math
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.records import records_of_levels
from utils.curricula.bandit import Scale, arm_labels, boltzmann, in_order, percentile_of
from utils.curricula.build import build_curriculum
from utils.curricula.curriculum import UNKNOWN
from utils.curricula.settings import CurriculumSettings
from utils.frame.config import build
from utils.frame.files import UserError, derive_seed


def bandit(levels, seed=0, types=None, signal="abs_advantage", **changes):
    chosen = build(CurriculumSettings, {"percentile": None, **changes}, "here")
    return build_curriculum(
        "sec", chosen, records_of_levels(levels, types), seed=seed, num_rollouts=10, signal=signal
    )


def reward_of(arm: int, t: int, place: int = 0) -> float:
    """A bandit whose best arm moves: a bump that wanders over the arms; prompts of an arm differ a little."""
    return 0.9 * math.exp(-((arm - 5 * t / 200) ** 2)) + 0.05 * (place % 3)


# ------------------------------------------------------------------------------- independent simulation


def simulate(levels, seed, rollouts, count, alpha, tau, floor, decay, percent=None, window=16):
    """SEC written down again in NumPy, arrays throughout: Q and arms drawn of every rollout.

    Only the sequence of uniform numbers is taken over, and the order inside an arm (which does not matter to
    the arms drawn; rewards of prompts do).
    """
    arms = np.unique(levels)
    q, history, drawn, scale = np.zeros(len(arms)), [], [], []
    queues, fills = {arm: [] for arm in arms}, dict.fromkeys(arms, 0)
    for t in range(rollouts):
        logits = q / tau - (q / tau).max()
        p = (1 - floor) * np.exp(logits) / np.exp(logits).sum() + floor / len(arms)
        draw = random.Random(derive_seed(seed, "curriculum", t))
        uniforms = np.array([draw.random() for _ in range(count)])
        picks = np.minimum(np.searchsorted(np.cumsum(p), uniforms, side="right"), len(arms) - 1)
        values, taken = np.empty(count), set()
        for at, pick in enumerate(picks):
            arm = arms[pick]
            if not queues[arm]:
                order = np.flatnonzero(levels == arm).tolist()
                random.Random(derive_seed(seed, "curriculum", str(arm), fills[arm])).shuffle(order)
                queues[arm], fills[arm] = order, fills[arm] + 1
            place = next(place for place in queues[arm] if place not in taken)
            queues[arm].remove(place)
            taken.add(place)
            values[at] = reward_of(arm, t, place)
        scale = [*scale, values][-window:]
        reference = np.percentile(np.concatenate(scale), percent) if percent else 1.0
        scaled = np.minimum(values / reference, 1)
        history.append(q.copy())
        drawn.append(np.bincount(picks, minlength=len(arms)))
        for at in range(len(arms)):
            if (picks == at).any():
                q[at] = (1 - alpha) * q[at] + alpha * scaled[picks == at].mean()
            elif decay:
                q[at] = (1 - alpha) * q[at]
    return np.array(history), np.array(drawn)


@pytest.mark.parametrize("percent", [None, 90.0], ids=["natural", "percentile"])
@pytest.mark.parametrize("decay", [False, True], ids=["keep", "decay"])
def test_q_and_choices_equal_a_numpy_simulation(decay, percent):
    levels = np.array([1 + row % 5 for row in range(500)])
    rollouts, count, settings_ = 200, 8, {"alpha": 0.3, "tau": 0.2, "floor": 0.1}
    expected_q, expected = simulate(levels, 7, rollouts, count, **settings_, decay=decay, percent=percent)
    curriculum = bandit(levels.tolist(), 7, **settings_, decay_unvisited=decay, percentile=percent)
    for t in range(rollouts):
        places = curriculum.choose(count)
        np.testing.assert_allclose(list(curriculum.q.values()), expected_q[t], rtol=1e-12, atol=1e-15)
        arms = [numbers["count"] for numbers in curriculum.row()["arms"].values()]
        assert arms == expected[t].tolist(), t
        curriculum.observe({"abs_advantage": [reward_of(levels[place], t, place) for place in places]})
    assert np.unique(expected.argmax(1)).size == 5  # every arm was the favourite at some time


def test_the_two_switch_settings_differ():
    """Without feedback for an arm, Q stays (paper) or falls by (1 - alpha) a rollout (published code)."""
    for decay in (False, True):
        curriculum = bandit([1] * 50 + [2] * 50, alpha=0.5, tau=0.01, floor=0.0, decay_unvisited=decay)
        curriculum.q = {"1": 0.8, "2": 0.4}
        for _ in range(3):
            places = curriculum.choose(4)
            assert {curriculum.label[place] for place in places} == {"1"}
            curriculum.observe({"abs_advantage": [0.8] * 4})
        assert curriculum.q["1"] == pytest.approx(0.8)
        assert curriculum.q["2"] == (0.05 if decay else 0.4)


@pytest.mark.parametrize("decay", [False, True])
def test_it_follows_the_best_arm(decay):
    """The best arm moves from 1 to 5 over 200 rollouts; most draws are of it or of its neighbour."""
    levels = [1 + row % 5 for row in range(500)]
    near, best = [], Counter()
    curriculum = bandit(levels, alpha=0.5, tau=0.1, decay_unvisited=decay)
    for t in range(40, 200):
        places = curriculum.choose(16)
        drawn = [levels[place] for place in places]
        near.append(np.mean([abs(arm - 5 * t / 200) <= 1 for arm in drawn]))
        best[Counter(drawn).most_common(1)[0][0]] += 1
        curriculum.observe({"abs_advantage": [reward_of(arm, t) for arm in drawn]})
    assert np.mean(near[20:]) > 0.75  # at random: 0.4
    assert all(best[arm] >= 15 for arm in (2, 3, 4))  # each in its turn


# ---------------------------------------------------------------------------------------------- extremes


@given(
    values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=12),
    tau=st.floats(1e-9, 1e9),
    floor=st.floats(0, 1),
)
def test_probabilities_are_a_distribution_above_the_floor(values, tau, floor):
    found = np.array(boltzmann(values, tau, floor))
    assert np.isfinite(found).all() and abs(found.sum() - 1) < 1e-12
    assert (found >= floor / len(values) - 1e-15).all()
    order = np.argsort(values, kind="stable")
    assert (np.diff(found[order]) >= -1e-15).all()  # more Q, never less probability


def test_extremes_of_tau_and_q():
    q = [0.1, 0.5, 0.3]
    np.testing.assert_allclose(boltzmann(q, 1e12), [1 / 3] * 3, atol=1e-12)
    assert boltzmann(q, 1e-300) == [0, 1, 0]
    assert boltzmann([0.5, 0.5, 0.1], 1e-9) == [0.5, 0.5, 0]
    assert boltzmann([1e6, 0, -1e6], 0.1) == [1, 0, 0]
    np.testing.assert_allclose(boltzmann([1e6, 1e6 + 1], 1.0)[1] / boltzmann([1e6, 1e6 + 1], 1.0)[0], math.e)
    np.testing.assert_allclose(
        boltzmann([0.2, 0.6], 0.4, 0.5), 0.25 + 0.5 * np.array([1, math.e]) / (1 + math.e)
    )


@pytest.mark.parametrize(("tau", "shares"), [(1e9, [0.25] * 4), (1e-9, [0, 0, 1, 0]), (0.5, None)])
def test_choice_frequencies_are_the_probabilities(tau, shares):
    """Chi-square over 40,000 draws with Q fixed, the greedy and the uniform limit among them."""
    curriculum = bandit([1 + row % 4 for row in range(400)], tau=tau, floor=0.0)
    curriculum.q = dict(zip("1234", [0.1, 0.3, 0.9, 0.5], strict=True))
    shares = shares or (np.exp(np.array([0.1, 0.3, 0.9, 0.5]) / 0.5) / np.exp([0.2, 0.6, 1.8, 1.0]).sum())
    counts = Counter(curriculum.label[place] for _ in range(4000) for place in curriculum.choose(10))
    for arm, share in zip("1234", shares, strict=True):
        deviation = 5 * math.sqrt(40_000 * share * (1 - share))
        assert abs(counts[arm] - 40_000 * share) <= deviation + 1e-3


# -------------------------------------------------------------------------------------- inside an arm


def test_an_arm_gives_every_prompt_once_before_any_again():
    curriculum = bandit([1] * 23 + [2] * 7, seed=3)
    given_ = {"1": [], "2": []}
    for _ in range(60):
        for place in curriculum.choose(5):
            given_[curriculum.label[place]].append(place)
    for arm, size in (("1", 23), ("2", 7)):
        rounds = [given_[arm][at : at + size] for at in range(0, len(given_[arm]) - size + 1, size)]
        counts = Counter(given_[arm])
        assert len(rounds) > 3 and max(counts.values()) - min(counts.values()) <= 1
        assert len({tuple(part) for part in rounds}) == len(rounds)  # in a new order each time


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    count=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_a_prompt_is_repeated_only_where_its_arm_has_no_other(sizes, count, seed):
    levels = [arm for arm, size in enumerate(sizes) for _ in range(size)]
    curriculum = bandit(levels, seed)
    if count > len(levels):
        with pytest.raises(UserError, match="make rollouts smaller"):
            curriculum.choose(count)
        return
    for _ in range(8):
        places = curriculum.choose(count)
        drawn = Counter(levels[place] for place in places)
        for arm, number in drawn.items():
            distinct = {place for place in places if levels[place] == arm}
            assert len(distinct) == min(number, sizes[arm])
        assert curriculum.row()["repeated"] == count - len(set(places))


# ------------------------------------------------------------------------------------- arms and rewards


def test_arms_are_levels_types_or_both():
    records = records_of_levels([10, 2, None, 2], ["algebra", "geometry", "algebra", ""])
    assert arm_labels(records, "level") == ["10", "2", None, "2"]
    assert arm_labels(records, "type") == ["algebra", "geometry", "algebra", None]
    assert arm_labels(records, "type_level") == ["algebra/10", "geometry/2", None, None]
    labels = ["a b/10", "a b/2", "10", "9", "-1", "z"]
    assert in_order(labels) == ["-1", "z", "9", "10", "a b/2", "a b/10"]
    curriculum = bandit([10, 2, None, 2], types=["algebra", "geometry", "algebra", ""], arms="type_level")
    assert curriculum.arms == ["algebra/10", "geometry/2"] and curriculum.left_out == 2


@given(st.lists(st.floats(0, 100), min_size=1, max_size=30), st.floats(0.1, 100))
def test_percentiles_equal_numpys(values, percent):
    assert percentile_of(values, percent) == pytest.approx(
        np.percentile(values, percent), rel=1e-9, abs=1e-12
    )


def test_the_scale_is_the_percentile_of_the_window():
    scale = Scale(50.0, 2)
    assert scale([0.0, 2.0, 4.0]) == [0.0, 1.0, 1.0]
    assert scale([1.0, UNKNOWN]) == [1 / 1.5, UNKNOWN]  # median of 0, 2, 4, 1
    assert scale([10.0, 20.0]) == [1.0, 1.0]  # median of 1, 10, 20; the first rollout is forgotten
    assert Scale(50.0, 2)([0.0, 0.0, 0.0, 3.0]) == [0.0, 0.0, 0.0, 1.0]  # median 0: the highest counts
    assert Scale(90.0, 2)([0.0, 0.0]) == [0.0, 0.0]
    assert Scale(None, 2)([0.25, 7.0]) == [0.25, 1.0]


def test_signals_are_weighted_and_unknown_ones_left_out():
    weights = {"abs_advantage": 3.0, "confidence_gap": 1.0}
    curriculum = bandit([1, 1, 2, 2, 3, 3], alpha=1.0, weights=weights, tau=1e9, floor=1.0)
    assert curriculum.weights == {"abs_advantage": 0.75, "confidence_gap": 0.25}
    curriculum.choose(6)
    curriculum.chosen = [0, 1, 2, 4]
    curriculum.observe(
        {"abs_advantage": [0.2, 0.6, UNKNOWN, UNKNOWN], "confidence_gap": [0.8, 0.0, 0.5, UNKNOWN]}
    )
    assert curriculum.q == pytest.approx({"1": 0.75 * 0.4 + 0.25 * 0.4, "2": 0.5, "3": 0.0})


@pytest.mark.parametrize("decay", [False, True])
def test_the_drop_of_the_probes_kl_rewards_the_arms_of_the_rollout_before(decay):
    curriculum = bandit(
        [1] * 20 + [2] * 20 + [3] * 20,
        alpha=0.5,
        probe_size=4,
        weights={"probe_kl_drop": 1.0},
        decay_unvisited=decay,
    )
    assert len(curriculum.probes) == 12 and len(set(curriculum.probes)) == 12
    arm = {"1": 0, "2": 1, "3": 2}
    kl = np.array([1.0, 2.0, 3.0])
    q = np.zeros(3)
    for _ in range(6):
        spread = np.linspace(-0.1, 0.1, 4)
        curriculum.measure((kl[:, None] + spread).ravel().tolist())
        np.testing.assert_allclose(list(curriculum.q.values()), q, atol=1e-12)
        visited = {arm[curriculum.label[place]] for place in curriculum.choose(2)}
        curriculum.observe({})
        drop = np.array([0.3, 0.1, -0.2])  # of arm 3 it rises: reward 0
        kl = kl - drop
        for place in range(3):
            if place in visited:
                q[place] += 0.5 * (max(drop[place], 0) - q[place])
            elif decay:
                q[place] *= 0.5


def test_the_methods_own_signal_counts_where_no_weight_is_given():
    assert bandit([1, 2], signal="confidence_gap").needs == {"confidence_gap"}
    assert bandit([1, 2], signal="confidence_gap", weights={"abs_advantage": 1.0}).needs == {"abs_advantage"}
