"""Rewards of evaluated answers: held to what training pays for them, and to sums by hand."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.support.records import RECORDS
from utils.evaluation.critic import KnownScores
from utils.evaluation.reward_components import reward_components, reward_metrics
from utils.evaluation.token_pass import TokenPass
from utils.grading.grade import grade
from utils.models.prefix.shared_prefix import CompletionBatch
from utils.models.sampling import Completion
from utils.models.teacher import TeacherScores
from utils.rewards.reward_pipeline import RewardPipeline
from utils.rewards.spec import IntrinsicSection, RewardSpec, RewardWeights

RIGHT = json.dumps({"program": "subtract(30, 10)"})  # of record 0
TEXTS = [
    RIGHT,
    "no json",
    json.dumps({"program": "subtract(32, 12)"}),
    json.dumps({"program": "add(34, 12)"}),
]
SPEC = RewardSpec(
    weights=RewardWeights(intrinsic=0.25, correctness=2.0, reasoning=0.5, format=3.0),
    intrinsic=IntrinsicSection(missing_eos_penalty=0.7),
    required_fields=["program"],
)


def asked(texts, outcomes, truncated=()):
    """Answers of the first records, None where a text is, and a token pass with these outcomes."""
    completions = [
        None if text is None else Completion(text, [5, 6, 1], number in truncated)
        for number, text in enumerate(texts)
    ]
    return SimpleNamespace(completions=completions), TokenPass({}, [], list(outcomes))


def components(texts, outcomes, spec=SPEC, **more):
    answers, passed = asked(texts, outcomes, **more)
    pairs = zip(RECORDS, texts, strict=False)
    grades = [None if text is None else grade(record, text, spec.required_fields) for record, text in pairs]
    return reward_components(RECORDS[: len(texts)], answers, passed, spec, grades)


def test_components_are_raw_and_the_total_is_their_weighted_sum():
    rows = components(TEXTS, [-1.5, -2.0, 0.0, -4.0], truncated={1})
    zero = {"exact_match": 0, "numeric_match": 0, "program_partial": 0, "format_penalty": 0, "reasoning": 0}
    assert rows[0] == zero | {"exact_match": 1.0, "reasoning": 1.0, "intrinsic": -1.5} | {
        "total": 2.0 * 1.0 + 0.5 * 1.0 - 0.25 * 1.5
    }
    assert rows[1] == zero | {"format_penalty": -0.2, "intrinsic": -2.7} | {
        "total": pytest.approx(-3.0 * 0.2 - 0.25 * 2.7)
    }
    assert rows[2]["numeric_match"] == 0 and rows[2]["exact_match"] == 0  # 20 where 22 is asked
    assert json.dumps(rows).count("-0.0") == 0


def test_totals_are_what_training_pays():
    outcomes = [-1.5, -2.0, -0.5, -4.0]
    truncated = [False, True, False, True]
    batch = CompletionBatch.of([[0]] * 4, [[5, 6, 1]] * 4, torch.device("cpu"))
    q = torch.tensor(outcomes)[:, None] * torch.tensor([0.5, 0.25, 0.25])
    teacher = KnownScores(TeacherScores(q, torch.zeros(4, 3)))
    paid = RewardPipeline(RECORDS[:4], SPEC, "combined", teacher).score_outcomes(
        range(4), batch, TEXTS, torch.tensor(truncated), update=False
    )
    rows = components(TEXTS, outcomes, truncated={1, 3})
    assert [row["total"] for row in rows] == pytest.approx(paid.total.tolist(), abs=2e-6)
    assert len({round(row["total"], 3) for row in rows}) == 4


def test_what_was_not_measured_is_not_there():
    right = json.dumps({"program": "subtract(34, 12)"})  # of record 2
    rows = components([RIGHT, None, right], [None, None, -1.0])
    assert rows[1] is None and "intrinsic" not in rows[0] and "total" not in rows[0]
    assert rows[2]["total"] == pytest.approx(2.25)
    task = RewardSpec(weights=RewardWeights(intrinsic=0.0), required_fields=["program"])
    rows = components([RIGHT, None, right], [None, None, -1.0], task)
    assert rows[0]["total"] == 1.0 == rows[2]["total"] and rows[2]["intrinsic"] == -1.0


def test_means_and_intervals():
    rng = np.random.default_rng(0)
    values = rng.normal(2, 1, 400)
    rows = [{"exact_match": float(value), "total": 1.0} for value in values] + [None]
    rows[0] = {"exact_match": float(values[0])}
    found = reward_metrics(rows, np.random.default_rng(1))
    assert list(found) == ["exact_match", "total"]
    assert found["exact_match"]["n"] == 400 and found["total"]["n"] == 399
    assert found["exact_match"]["value"] == pytest.approx(values.mean())
    low, high = found["exact_match"]["ci95"]
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.05)
    assert found["total"]["ci95"] == [1.0, 1.0]
    assert reward_metrics([{"total": 3.0}], rng) == {"total": {"value": 3.0, "ci95": None, "n": 1}}
    assert reward_metrics([None], rng) == {}


# -------------------------------------------------------------------------------------------- in stage 10
