"""Unit tests of a reward specification, made from a run's own records: completions with known rewards.

Each expected reward follows from the specification by hand (no grader is asked), so that a slip in grading,
in the prompts' format or in the specification shows before anything is trained on it.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction

from utils.data.records import Record
from utils.frame.files import derive_seed
from utils.frame.stage import StageContext
from utils.grading.tasks import task_of
from utils.rewards.spec import RewardSpec
from utils.rewards.task_reward import COMPONENTS, task_reward

AGREEMENT = 1e-9


@dataclass(frozen=True)
class Case:
    """A completion for a record, and its known reward (``expected``: component -> reward)."""

    id: str
    record_id: str
    completion: str
    expected: dict[str, float]


def build_cases(record: Record, spec: RewardSpec) -> list[Case]:
    """The gold, near misses and broken forms for one record, each with the reward it must get."""
    task = task_of(record.dataset)
    gold = task.gold_completion(record)
    cases = [
        ("gold", gold, {"exact_match": 1}),
        ("gold_in_blanks", f"  {gold}\n", {"exact_match": 1}),
        ("empty", "", {"format_penalty": 1}),
        ("words", "I do not know.", {"format_penalty": 1}),
        *task.unit_cases(record, spec.required_fields, spec.numeric_tolerance),
    ]
    return [
        Case(
            f"{record.id}/{name}",
            record.id,
            completion,
            {part: _price(part, spec, Fraction(paid.get(part, 0))) for part in COMPONENTS},
        )
        for name, completion, paid in cases
    ]


def _price(part: str, spec: RewardSpec, share: Fraction) -> float:
    """The weighted reward for a share of a component."""
    weight = spec.weights.format if part == "format_penalty" else spec.weights.correctness
    return weight * (getattr(spec, part) * share.numerator / share.denominator if share else 0.0)


def run_cases(
    splits: dict[str, list[Record]], spec: RewardSpec, per_split: int, seed: int
) -> tuple[list[dict], list[dict]]:
    """The cases of ``per_split`` records of each split, and their outcomes, as JSON data."""
    cases, results = [], []
    for split, records in splits.items():
        rng = random.Random(derive_seed(seed, "reward_cases", split))
        for record in rng.sample(records, min(per_split, len(records))):
            for case in build_cases(record, spec):
                cases.append(as_json(case))
                results.append(run_case(case, record, spec))
    return cases, results


def run_case(case: Case, record: Record, spec: RewardSpec) -> dict:
    """The case's outcome as JSON data: its reward, and whether it is the expected one."""
    paid = task_reward(record, case.completion, spec)
    expected = case.expected | {"total": sum(case.expected.values())}
    passed = all(abs(paid[name] - expected[name]) <= AGREEMENT for name in expected)
    return {"id": case.id, "passed": passed, "paid": paid}


def as_json(case: Case) -> dict:
    """The case as JSON data, its expected total included."""
    return asdict(case) | {"expected": case.expected | {"total": sum(case.expected.values())}}


def grade_golds(
    ctx: StageContext, splits: Mapping[str, Sequence[Record]], fields: tuple[str, ...]
) -> list[str]:
    """Grade every gold as an answer with these fields; the counts go into the manifest and the log.

    Returns a line for each that does not score as right: where it is from, and why.
    """
    failures: list[str] = []
    for split, records in splits.items():
        counts: Counter[str] = Counter()
        for record in ctx.progress(records, description=f"golds of {split}"):
            task = task_of(record.dataset)
            graded = task.grade(record, task.gold_completion(record), fields)
            counts.update(name for name, met in graded.official.items() if met)
            if not (graded.correct and graded.format_valid):
                failures.append(f"{record.source or record.id}: {graded.failure or graded.format_error}")
        ctx.metrics[split] = {"golds": len(records), **{f"gold_{k}": v for k, v in sorted(counts.items())}}
        ctx.log(f"{split}: {ctx.metrics[split]}")
    return failures
