"""pass@k and majority@k against enumeration of all draws, and what counts as one answer."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from utils.data.records import Record
from utils.evaluation.sampled_answers import GradedSample, grade_samples, sample_lines, sample_metrics, votes
from utils.models.sampling import Completion
from utils.models.settings import GenerationSection
from utils.statistics.pass_at_k import majority_at_k, pass_at_k, sample_ks

RIGHT, UNREADABLE = 0, -1


def enumerated(values, k):
    """(pass@k, majority@k) by looking at every draw of k samples; the right answer is RIGHT."""
    passed, won = [], []
    for draw in combinations(values, k):
        counts = Counter(value for value in draw if value != UNREADABLE)
        most = max(counts.values(), default=0)
        top = [value for value, count in counts.items() if count == most]
        passed.append(RIGHT in draw)
        won.append((RIGHT in top) / len(top) if top else 0.0)
    return np.mean(passed), np.mean(won)


@given(st.lists(st.integers(UNREADABLE, 4), min_size=1, max_size=9), st.data())
def test_both_equal_the_enumeration_of_all_draws(values, data):
    k = data.draw(st.integers(1, len(values)))
    counts = Counter(values)
    wrong = [count for value, count in counts.items() if value > 0]
    expected = enumerated(values, k)
    assert pass_at_k(len(values), counts[RIGHT], k) == pytest.approx(expected[0], abs=1e-12)
    assert majority_at_k(counts[RIGHT], wrong, counts[UNREADABLE], k) == pytest.approx(expected[1], abs=1e-12)


def test_two_answers_vote_as_the_hypergeometric_distribution_says():
    """64 samples, 30 right against 34 of one wrong value: more than half of k, or half of it for half."""
    for k in (1, 2, 16, 33, 64):
        right = stats.hypergeom(64, 30, k)
        expected = right.sf(k // 2) if k % 2 else right.sf(k // 2) + right.pmf(k // 2) / 2
        assert majority_at_k(30, [34], 0, k) == pytest.approx(expected, abs=1e-12)


def test_many_samples_of_many_values_are_still_exact():
    assert majority_at_k(1, [1] * 127, 0, 128) == pytest.approx(1 / 128, abs=1e-12)
    assert majority_at_k(2, [1] * 100, 26, 128) == 1.0
    assert majority_at_k(0, [], 5, 3) == 0.0


def test_ks():
    assert [sample_ks(n) for n in (1, 2, 3, 8, 12)] == [
        [1],
        [1, 2],
        [1, 2, 3],
        [1, 2, 4, 8],
        [1, 2, 4, 8, 12],
    ]


# -------------------------------------------------------------------------------------- what votes for what


def graded(dataset, gold, texts, program=""):
    record = Record("r", dataset, "q", "q", "t", gold, program)
    return grade_samples(record, [Completion(text, [5] * len(text), False) for text in texts])


def test_finqa_programs_vote_by_their_value():
    programs = ["add(1, 2)", "add(2, 1)", "add(2, 2)", "multiply(2, 2)", "add(1, ", "subtract(9, 6)"]
    texts = [f'{{"program": "{program}", "answer": "3"}}' for program in programs] + ["no JSON"]
    samples = graded("finqa", "3.0", texts, "add(1, 2)")
    assert [sample.correct for sample in samples] == [True, True, False, False, False, True, False]
    assert [sample.value for sample in samples] == ["3.0", "3.0", "4.0", "4.0", "", "3.0", ""]
    assert votes(samples) == (3, (2,), 2)


def test_gsm8k_answers_vote_by_the_number_of_the_official_rule():
    texts = [
        "#### 18",
        "18 it is #### 18",
        "#### 1,8.0",
        "#### 19",
        "#### 19.0",
        "so 18",
        "####18",
        "#### 18.",
    ]
    samples = graded("gsm8k", "18", texts)
    # "1,8.0" is read as 18.0, which the official rule does not take for 18, nor "18.": one wrong value.
    assert [sample.value for sample in samples] == ["18", "18", "18.0", "19", "19.0", "", "", "18."]
    assert votes(samples) == (2, (2, 2), 2)


def test_math_answers_vote_together_where_they_are_right_or_written_alike():
    texts = [
        rf"so \boxed{{{answer}}}"
        for answer in (r"\frac{1}{2}", r"\dfrac12", "0.5", r"\left( x \right)", "(x)")
    ]
    samples = graded("math", r"\frac12", [*texts, r"\boxed{}", "nothing", r"\boxed{7}", r"\boxed{7.0}"])
    assert [sample.correct for sample in samples] == [True] * 3 + [False] * 6
    assert votes(samples) == (3, (2, 2), 2)


# -------------------------------------------------------------------------------------------------- metrics


def item(text):
    """Samples by letter: R right, w and x wrong values, _ unreadable."""
    values = {"R": "1", "_": ""} | {letter: letter for letter in "wx"}
    return [
        GradedSample(Completion(each, [1, 2], each == "_"), values[each], each == "R", values[each])
        for each in text
    ]


def test_metrics_of_hand_made_items():
    samples = [item("RRww"), item("Rwwx"), item("____"), []]  # the last could not be asked
    found = sample_metrics(samples, 4, GenerationSection(temperature=0.7), np.random.default_rng(0))
    assert (found["num_samples"], found["temperature"], found["top_p"], found["top_k"]) == (4, 0.7, 1.0, 0)
    values = {
        kind: {k: rate["value"] for k, rate in found[kind].items()} for kind in ("pass_at_k", "majority_at_k")
    }
    assert values["pass_at_k"] == pytest.approx(
        {"1": (2 / 4 + 1 / 4) / 4, "2": (5 / 6 + 1 / 2) / 4, "4": 2 / 4}
    )
    # Two of RRww: RR wins, Rw (4 of 6) is a tie; of Rwwx: R with w or x (3 of 6) is a tie.
    assert values["majority_at_k"] == pytest.approx(
        {"1": (2 / 4 + 1 / 4) / 4, "2": ((1 + 4 / 2) / 6 + (3 / 2) / 6) / 4, "4": (1 / 2) / 4}
    )
    for kind in values:
        for rate in found[kind].values():
            assert rate["n"] == 4 and 0 <= rate["ci95"][0] <= rate["value"] <= rate["ci95"][1] <= 1
    assert (found["readable"], found["truncated"]) == (8 / 12, 4 / 12)
    assert found["distinct_per_item"] == (2 + 3 + 1 + 0) / 4
    assert (
        sample_lines(found)[0] == "  pass@k of 4 samples at temperature 0.7: 1: 18.8 %, 2: 33.3 %, 4: 50.0 %"
    )


def test_where_all_items_agree_the_interval_is_wilsons():
    for letter, successes in (("R", 5), ("w", 0)):
        found = sample_metrics([item(letter * 2)] * 5, 2, GenerationSection(), np.random.default_rng(0))
        wilson = stats.binomtest(successes, 5).proportion_ci(method="wilson")
        assert found["pass_at_k"]["1"]["ci95"] == pytest.approx([wilson.low, wilson.high])


def test_the_interval_is_the_percentile_bootstraps():
    samples = [item("RRww"), item("Rwww"), item("wwww"), item("RRRR")] * 25
    found = sample_metrics(samples, 4, GenerationSection(), np.random.default_rng(0))["pass_at_k"]["1"]
    values = np.tile([0.5, 0.25, 0.0, 1.0], 25)
    reference = stats.bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(1))
    assert found["ci95"] == pytest.approx(list(reference.confidence_interval), abs=5e-3)
