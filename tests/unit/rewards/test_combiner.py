"""Ranking measures against counting pairs, and adaptive weights: what moves them and what must not."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from utils.frame.files import UserError
from utils.rewards.combiner import RewardCombiner
from utils.rewards.spec import AdaptiveSection, IntrinsicSection, RewardSpec, RewardWeights, paid_weights
from utils.statistics.ranking import auroc, group_pairs, within_group_accuracy

# ------------------------------------------------------------------------------------------------- ranking


def counted(scores, labels, groups):
    """Pairs of a right and a wrong item of one group, one by one: won (ties one half) and all."""
    won = pairs = 0.0
    for i, right in enumerate(labels):
        for j, wrong in enumerate(labels):
            if right and not wrong and groups[i] == groups[j]:
                pairs += 1
                won += 1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0
    return won, pairs


@given(
    st.lists(
        st.tuples(st.integers(-3, 3) | st.floats(-1, 1), st.booleans(), st.sampled_from("abc")), max_size=24
    )
)
def test_rankings_count_pairs(rows):
    scores, labels, groups = [list(column) for column in zip(*rows, strict=True)] or ([], [], [])
    for measured, kept in ((auroc(scores, labels), [0] * len(rows)), (None, groups)):
        won, pairs = counted(scores, labels, kept)
        if kept is groups:
            measured = within_group_accuracy(scores, labels, groups)
        assert (measured is None) == (pairs == 0)
        if pairs:
            assert measured == pytest.approx(won / pairs, abs=1e-12)


def test_pairs_of_each_group():
    scores, labels = [3, 1, 2, 5, 5, 0], [True, False, False, True, False, True]
    won, pairs = group_pairs(scores, labels, ["x", "x", "y", "z", "z", "z"])
    assert (won.tolist(), pairs.tolist()) == ([1.0, 0.5], [1.0, 2.0])


def test_only_the_order_of_scores_matters():
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=50), rng.random(50) < 0.4
    assert auroc(np.exp(scores) * 1000, labels) == auroc(scores, labels)
    assert auroc(-scores, labels) == pytest.approx(1 - auroc(scores, labels))
    assert auroc([1, 2], [True, True]) is None


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="1 of 2 scores are not finite"):
        auroc([1.0, float("nan")], [True, False])
    with pytest.raises(ValueError, match="2 scores, 1 labels and 2 groups"):
        auroc([1.0, 2.0], [True])


# ------------------------------------------------------------------------------------------------ combiner


def combiner(weights=None, **adaptive) -> RewardCombiner:
    section = AdaptiveSection(enabled=True, **{"rate": 0.1, "minimum_factor": 0.2, **adaptive})
    weights = weights or RewardWeights(intrinsic=0.5, reasoning=0.25)
    spec = RewardSpec(weights=weights, adaptive=section)
    return RewardCombiner(spec, paid_weights(spec, "combined"))


def rollout(rng, prompts=40, samples=8):
    """Which prompt each completion answers, and whether it does so rightly."""
    return np.repeat(np.arange(prompts), samples).tolist(), (rng.random(prompts * samples) < 0.4).tolist()


def follow(combined, quality, rounds=80, scale=1.0, seed=0):
    """Rollouts whose intrinsic reward is noise plus `quality` for a right answer, and whose reasoning score
    is noise alone; returns the factors after each."""
    rng = np.random.default_rng(seed)
    seen = []
    for _ in range(rounds):
        groups, correct = rollout(rng)
        noise, other = rng.normal(size=(2, len(groups)))
        scores = {"intrinsic": scale * (noise + quality * np.array(correct)), "reasoning": other}
        combined.observe(scores, correct, groups)
        seen.append(combined.factors())
    return seen


def test_noise_sinks_to_the_minimum():
    seen = follow(combiner(), quality=0.0)
    for name in ("intrinsic", "reasoning"):
        factors = [factor[name] for factor in seen]
        assert factors[0] > 0.85  # one rollout decides little
        assert np.mean(factors[-20:]) == pytest.approx(0.2, abs=0.02)


def test_a_component_turned_against_correctness_sinks_to_the_minimum():
    assert follow(combiner(), quality=-1.0)[-1]["intrinsic"] == 0.2


def test_an_informative_component_rises():
    """P(right above wrong) is Phi(3 / sqrt 2) = 0.983 for two unit normals 3 apart: evidence 0.966."""
    factors = [factor["intrinsic"] for factor in follow(combiner(initial_factor=0.2), quality=3.0)]
    assert all(later > earlier for earlier, later in zip(factors[:10], factors[1:11], strict=True))
    assert factors[-1] == pytest.approx(0.2 + 0.8 * 0.966, abs=0.01)


def test_a_component_that_recovers_is_trusted_again():
    combined = combiner()
    follow(combined, quality=-1.0)
    low = combined.weights()["intrinsic"]
    follow(combined, quality=3.0)
    assert low == pytest.approx(0.1) and combined.weights()["intrinsic"] > 0.45


def test_neither_scale_nor_variance_moves_a_weight():
    assert follow(combiner(), quality=0.5) == follow(combiner(), quality=0.5, scale=1000.0)
    # Large noise does not raise a weight above that of a small signal.
    noisy = follow(combiner(), quality=0.0, scale=1000.0)[-1]
    assert noisy["intrinsic"] < follow(combiner(), quality=0.5)[-1]["intrinsic"]


def test_one_step_by_hand():
    """One prompt, right above one of two wrong answers and tied with the other: P = 3/4, e = 1/2."""
    combined = combiner(rate=0.5, initial_factor=0.6)  # evidence starts at (0.6 - 0.2) / 0.8 = 0.5
    scores = {"intrinsic": [2.0, 1.0, 2.0], "reasoning": [0.0, 1.0, 1.0]}
    combined.observe(scores, [True, False, False], [7, 7, 7])
    assert combined.evidence == pytest.approx({"intrinsic": 0.5, "reasoning": 0.5 * 0.5 - 0.5})
    assert combined.factors() == pytest.approx({"intrinsic": 0.6, "reasoning": 0.2})
    assert combined.weights() == pytest.approx(
        {"intrinsic": 0.3, "correctness": 1.0, "reasoning": 0.05, "format": 1.0}
    )


def test_without_evidence_nothing_changes():
    combined = combiner(initial_factor=0.7)
    before = combined.state_dict()
    scores = {"intrinsic": [1.0, 2.0, 3.0, 4.0], "reasoning": [0.0, 1.0, 0.0, 1.0]}
    combined.observe(scores, [True] * 4, [0, 0, 1, 1])
    combined.observe(scores, [False] * 4, [0, 0, 1, 1])
    combined.observe(scores, [True, True, False, False], [0, 0, 1, 1])  # both labels, but not for one prompt
    combined.observe({"intrinsic": [], "reasoning": []}, [], [])
    assert combined.state_dict() == before


@given(st.lists(st.lists(st.tuples(st.floats(-1e6, 1e6), st.booleans()), max_size=8), max_size=8))
def test_weights_are_bounded_whatever_comes(rollouts):
    combined = combiner(rate=1.0)
    for rows in rollouts:
        scores = [score for score, _ in rows]
        combined.observe(
            {"intrinsic": scores, "reasoning": scores}, [right for _, right in rows], [0] * len(rows)
        )
        weights = combined.weights()
        assert 0.1 <= weights["intrinsic"] <= 0.5 and 0.05 <= weights["reasoning"] <= 0.25
        assert (weights["correctness"], weights["format"]) == (1.0, 1.0)


def test_fixed_weights_and_components_that_are_not_paid_do_not_move():
    fixed = RewardCombiner(RewardSpec(), RewardWeights(intrinsic=0.5, reasoning=0.5))
    unpaid = combiner(RewardWeights(intrinsic=0.5, reasoning=0.0))
    assert fixed.adapted == () and unpaid.adapted == ("intrinsic",)
    for combined in (fixed, unpaid):
        combined.observe({"intrinsic": [0.0, 1.0], "reasoning": [0.0, 1.0]}, [True, False], [0, 0])
    assert fixed.weights() == {"intrinsic": 0.5, "correctness": 1.0, "reasoning": 0.5, "format": 1.0}
    assert unpaid.weights()["reasoning"] == 0.0


def test_where_correctness_is_not_paid_its_labels_are_not_used():
    spec = RewardSpec(adaptive=AdaptiveSection(enabled=True))
    assert RewardCombiner(spec, paid_weights(spec, "intrinsic")).adapted == ()


def test_a_minimum_of_one_switches_adaptation_off():
    combined = combiner(minimum_factor=1.0)
    follow(combined, quality=-1.0, rounds=3)
    assert combined.factors() == {"intrinsic": 1.0, "reasoning": 1.0}


def test_state_round_trips_through_json():
    def step(combined, seed):
        rng = np.random.default_rng(seed)
        groups, correct = rollout(rng, 3)
        scores = rng.normal(size=(2, 24))
        combined.observe(dict(zip(("intrinsic", "reasoning"), scores, strict=True)), correct, groups)
        values = torch.tensor(scores)
        return [
            combined.normalise(values, torch.ones_like(values), level).tolist()
            for level in ("token", "outcome")
        ]

    spec = RewardSpec(
        weights=RewardWeights(reasoning=0.5),
        intrinsic=IntrinsicSection(normaliser="robust", scope="running"),
        adaptive=AdaptiveSection(enabled=True),
    )
    first, second = (RewardCombiner(spec, spec.weights) for _ in range(2))
    for seed in range(4):
        step(first, seed)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for seed in range(4, 7):
        assert step(first, seed) == step(second, seed)
    assert first.state_dict() == second.state_dict()
    assert first.state_dict()["normalisers"]["token"]["count"] > 0
    other = RewardCombiner(replace(spec, adaptive=AdaptiveSection()), spec.weights)
    with pytest.raises(UserError, match="another reward specification.*--overwrite"):
        other.load_state_dict(first.state_dict())


def test_tokens_and_outcomes_have_statistics_of_their_own():
    spec = RewardSpec(intrinsic=IntrinsicSection(normaliser="z_score", scope="running"))
    combined = RewardCombiner(spec, spec.weights)
    combined.normalise(torch.tensor([[1.0, 3.0]]), torch.ones(1, 2), "token")
    assert combined.normalisers["token"].state.count == 2
    assert combined.normalisers["outcome"].state.count == 0
