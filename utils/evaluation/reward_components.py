"""What the run's reward specification says of an evaluated policy's greedy answers, component by component.

Components are raw: before ``weights``, in the specification's own amounts (``exact_match: 1.0``, ...).

    exact_match, numeric_match, program_partial, format_penalty    utils/rewards/task_reward.py
    reasoning   score in [0, 1]
    <own>       what each user-defined function says (utils/rewards/user_components.py)
    intrinsic   alpha * log pi_hat(answer | prompt), nats times alpha, less ``missing_eos_penalty`` where the
                answer was cut off; only where the token pass asked the teacher
    total       the weighted sum, as under ``--reward combined``

Normalisers and adaptive weights belong to a rollout and its training, and are not applied: the same answer
has the same reward in every evaluation. Where the intrinsic reward has a weight and is not known there is no
total.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from utils.data.records import Record
from utils.evaluation.answers import PolicyAnswers
from utils.evaluation.token_pass import TokenPass
from utils.grading.task import Grade
from utils.grading.tasks import task_of
from utils.models.sampling import Completion
from utils.rewards.spec import RewardSpec, RewardWeights
from utils.rewards.task_reward import COMPONENTS, reward_of
from utils.rewards.user_components import own_rewards
from utils.statistics.clusters import cluster_numbers, clustered_ratios

WEIGHT_OF = dict.fromkeys(COMPONENTS, "correctness") | {
    "format_penalty": "format",
    "reasoning": "reasoning",
    "intrinsic": "intrinsic",
}
_UNWEIGHTED = RewardWeights(intrinsic=1.0, correctness=1.0, reasoning=1.0, format=1.0)


def reward_components(
    records: Sequence[Record],
    answers: PolicyAnswers,
    token_pass: TokenPass,
    spec: RewardSpec,
    grades: Sequence[Grade | None],
) -> list[dict[str, float] | None]:
    """Components and total of every record's greedy answer; None for a record that was not answered.

    Args:
        grades: of the answers, graded with the specification's required fields.
    """
    rows = zip(records, answers.completions, token_pass.outcomes, grades, strict=True)
    return [None if row[1] is None else components(*row, spec) for row in rows]


def components(
    record: Record, completion: Completion, outcome: float | None, graded: Grade, spec: RewardSpec
) -> dict[str, float]:
    """The same for one answer; ``outcome`` is the teacher's, None where it was not asked."""
    paid = reward_of(record, graded, replace(spec, weights=_UNWEIGHTED))
    found = {name: paid[name] for name in COMPONENTS}
    found["reasoning"] = task_of(record.dataset).reasoning_score(record, completion.text)
    found |= {each.name: each.score(record, completion.text) for each in own_rewards(spec)}
    if outcome is not None:
        found["intrinsic"] = outcome - (spec.intrinsic.missing_eos_penalty if completion.truncated else 0.0)
    if outcome is not None or not spec.weights.intrinsic:
        weights = asdict(spec.weights) | {name: own.weight for name, own in spec.own.items()}
        found["total"] = sum(weights[WEIGHT_OF.get(name, name)] * value for name, value in found.items())
    return {name: round(value, 6) + 0.0 for name, value in found.items()}  # no negative zeros


def reward_metrics(
    rows: Sequence[dict[str, float] | None], rng: np.random.Generator, reports: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """Means over the answers that have the component, with percentile bootstrap intervals over items.

    {component: {"value", "ci95", "n"}}; the interval is null for a single answer. {} without answers.
    ``reports`` are those of the items; where items share one, the bootstrap draws reports.
    """
    named = zip(rows, reports or [""] * len(rows), strict=True)
    answered = [(row, report) for row, report in named if row is not None]
    found = {}
    own = {name: None for row, _ in answered for name in row if name not in WEIGHT_OF and name != "total"}
    for name in (*WEIGHT_OF, "total", *own):  # own ones last: the others' intervals are drawn as without them
        having = [(row[name], report) for row, report in answered if name in row]
        if having:
            values, of_reports = zip(*having, strict=True)
            sums, weights = np.array(values)[:, None], np.ones(len(values))
            (found[name],) = clustered_ratios(sums, weights, rng, cluster_numbers(of_reports))
    return found
