"""The task reward of a completion: for its answer, its program and its form.

At most one of three parts is given for the content, so that a wrong answer never outranks a right one:

    exact_match      the answer is right by the data set's official rule
    numeric_match    a wrong number within ``numeric_tolerance`` of the gold, relative to it
    program_partial  neither of these: times the share of steps in common with the gold program (operation
                     and arguments, over the longer program's length)

and, whatever the content, ``format_penalty`` where the form is not what was asked for.
It fails closed: an unusable gold is an error, an answer that cannot be read is wrong, and an empty answer
equals nothing.

``weights.correctness`` multiplies the first three parts, ``weights.format`` the last.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from utils.data.records import Record
from utils.frame.files import UserError
from utils.grading.grade import grade
from utils.grading.task import Grade
from utils.grading.tasks import task_of
from utils.rewards.spec import RewardSpec

if TYPE_CHECKING:  # which imports torch
    from utils.models.sampling import Completion

COMPONENTS = ("exact_match", "numeric_match", "program_partial", "format_penalty")


def task_reward(record: Record, completion: str, spec: RewardSpec) -> dict[str, float]:
    """Reward of one decoded completion: every component, weighted, and their sum as ``total``.

    Raises UserError naming the record if its gold is unusable.
    """
    return reward_of(record, grade(record, completion, spec.required_fields, program_accuracy=False), spec)


def reward_of(record: Record, graded: Grade, spec: RewardSpec) -> dict[str, float]:
    """The same for a completion that has been graded already (with the spec's required fields)."""
    paid = dict.fromkeys(COMPONENTS, 0.0)
    weight = spec.weights.correctness
    if graded.correct:
        paid["exact_match"] = weight * spec.exact_match
    elif graded.relative_error is not None and graded.relative_error <= spec.numeric_tolerance:
        paid["numeric_match"] = weight * spec.numeric_match
    else:
        credit = task_of(record.dataset).partial_credit(record, graded)
        paid["program_partial"] = weight * spec.program_partial * credit
    if not graded.format_valid and spec.weights.format:  # 0 times a penalty would be a negative zero
        paid["format_penalty"] = spec.weights.format * spec.format_penalty
    return paid | {"total": sum(paid.values())}


def graded_row(record: Record, completion: Completion, spec: RewardSpec) -> dict[str, Any]:
    """A sampled completion as JSON data: ``text``, ``tokens`` (their number), ``truncated``, ``correct``,
    ``parsed`` (the form is valid) and ``reward`` (as ``task_reward`` gives it).

    Raises UserError naming the record if its gold is unusable.
    """
    graded = grade(record, completion.text, spec.required_fields, program_accuracy=False)
    return {
        "text": completion.text,
        "tokens": len(completion.token_ids),
        "truncated": completion.truncated,
        "correct": graded.correct,
        "parsed": graded.format_valid,
        "reward": reward_of(record, graded, spec),
    }


def required_fields(spec: RewardSpec, records: Iterable[Record]) -> list[str]:
    """The fields that an answer must fill: the specification's, or those that the records teach.

    Raises UserError for a field of the specification that no gold answer fills.
    """
    taught = dict.fromkeys(field for r in records for field in task_of(r.dataset).required_fields(r))
    if unknown := [name for name in spec.required_fields if taught and name not in taught]:
        raise UserError(
            f'reward.required_fields: no target has "{unknown[0]}"; dataset.response_fields of '
            f"01_prepare_dataset.py gave {', '.join(taught)}"
        )
    return spec.required_fields or list(taught)
