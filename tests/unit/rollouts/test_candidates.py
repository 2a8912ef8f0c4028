"""pass@k against enumeration, and the summary of candidates against numbers worked out by hand."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from utils.rollouts.candidates import pass_at_k, summarize_candidates


@given(st.data())
def test_pass_at_k_is_the_share_of_draws_with_a_right_sample(data):
    n = data.draw(st.integers(1, 9))
    correct = data.draw(st.integers(0, n))
    k = data.draw(st.integers(1, n))
    samples = [True] * correct + [False] * (n - correct)
    draws = [any(draw) for draw in combinations(samples, k)]
    assert pass_at_k(n, correct, k) == pytest.approx(sum(draws) / len(draws), abs=1e-12)


def candidate(text, correct, total, tokens=4, parsed=True, truncated=False):
    reward = {"exact_match": float(correct), "format_penalty": total - correct, "total": total}
    return {
        "text": text,
        "tokens": tokens,
        "truncated": truncated,
        "correct": correct,
        "parsed": parsed,
        "reward": reward,
    }


@pytest.fixture
def rows():
    right, wrong = candidate("a", True, 1.0), candidate("b", False, 0.0, tokens=8)
    broken = candidate("c", False, -0.5, tokens=16, parsed=False, truncated=True)
    return [
        {"id": "1", "level": 1, "prompt": "p", "candidates": [right, right, right, right]},
        {"id": "2", "level": 1, "prompt": "p", "candidates": [right, wrong, wrong, broken]},
        {"id": "3", "level": 2, "prompt": "p", "candidates": [wrong, wrong, wrong, wrong]},
    ]


def test_summary_of_hand_made_rows(rows):
    summary = summarize_candidates(rows, 4, seed=0)
    assert (summary["prompts"], summary["candidates"]) == (3, 12)
    assert summary["accuracy"] == round(5 / 12, 6)
    assert summary["parse_rate"] == round(11 / 12, 6)
    assert summary["truncated"] == round(1 / 12, 6)
    assert summary["mean_tokens"] == round((5 * 4 + 6 * 8 + 16) / 12, 6)
    assert summary["mean_reward"] == round(4.5 / 12, 6)
    assert summary["mean_components"] == {
        "exact_match": round(5 / 12, 6),
        "format_penalty": round(-0.5 / 12, 6),
        "total": round(4.5 / 12, 6),
    }
    # Prompt 2 has one right of four: pass@1 1/4, pass@2 1 - C(3,2)/C(4,2) = 1/2, pass@4 1.
    assert {k: rate["value"] for k, rate in summary["pass_at_k"].items()} == {
        "1": round(1.25 / 3, 6),
        "2": 0.5,
        "4": round(2 / 3, 6),
    }
    by_level = summary["pass_at_k_by_level"]
    assert {level: rates["2"]["value"] for level, rates in by_level.items()} == {"1": 0.75, "2": 0.0}
    assert {level: rates["2"]["n"] for level, rates in by_level.items()} == {"1": 2, "2": 1}
    assert summary["distinct_per_prompt"] == round((1 + 3 + 1) / 3, 6)
    assert summary["prompts_with_signal"] == round(1 / 3, 6)


def test_interval_of_the_mean_over_prompts(rows):
    """pass@2 of the prompts is 1, 0.5 and 0; many prompts make the interval narrow enough not to be cut."""
    rate = summarize_candidates(rows * 20, 4, seed=0)["pass_at_k"]["2"]
    values = np.array([1.0, 0.5, 0.0] * 20)
    reference = stats.bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(1))
    assert (rate["value"], rate["n"]) == (0.5, 60)
    assert rate["ci95"] == pytest.approx(list(reference.confidence_interval), abs=0.01)
    assert summarize_candidates(rows, 4, seed=0)["pass_at_k"]["2"]["ci95"] == [0.0, 1.0]


@pytest.mark.parametrize(("count", "ks"), [(1, ["1"]), (4, ["1", "2", "4"]), (6, ["1", "2", "4", "6"])])
def test_ks_are_powers_of_two_and_the_number_of_candidates(count, ks):
    rows = [{"id": "1", "level": None, "prompt": "p", "candidates": [candidate("a", True, 1.0)] * count}]
    summary = summarize_candidates(rows, count, seed=0)
    assert list(summary["pass_at_k"]) == ks
    wilson = stats.binomtest(1, 1).proportion_ci(method="wilson")  # of one prompt a bootstrap sees nothing
    assert summary["pass_at_k"]["1"] == {"value": 1.0, "ci95": [round(wilson.low, 6), 1.0], "n": 1}
    assert list(summary["pass_at_k_by_level"]) == ["None"]
