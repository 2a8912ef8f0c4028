"""Unit tests of a reward specification, made from a run's own records: completions with known rewards.

Each expected reward follows from the specification by hand (no grader is asked), so that a slip in grading,
in the prompts' format or in the specification shows before anything is trained on it.
"""

import json
import random
from dataclasses import asdict, dataclass

from utils.data.records import Record
from utils.frame.files import derive_seed
from utils.grading.grade import PROGRAM_DATASETS, Grade, grade
from utils.rewards.spec import RewardSpec
from utils.rewards.task import COMPONENTS, task_reward

AGREEMENT = 1e-9


@dataclass(frozen=True)
class Case:
    """A completion for a record, and what it must be paid (``expected``: component -> reward)."""

    id: str
    record_id: str
    completion: str
    expected: dict[str, float]


def gold_completion(record: Record) -> str:
    """The completion that every field of the gold would be: what SFT teaches, with the gold's program and
    answer in place of the annotator's."""
    if record.form not in PROGRAM_DATASETS:
        return record.target_text
    return json.dumps(_gold_fields(record), ensure_ascii=False)


def _gold_fields(record: Record) -> dict[str, str]:
    gold = {"program": record.target_program, "answer": record.target_answer}
    taught = json.loads(record.target_text)
    return {name: gold.get(name, text) for name, text in taught.items()}


def gold_grade(record: Record, spec: RewardSpec) -> Grade:
    """The grade of the gold completion, which must be right in every respect."""
    return grade(record, gold_completion(record), spec.required_fields)


def build_cases(record: Record, spec: RewardSpec) -> list[Case]:
    """The gold, near misses and broken forms for one record, each with the reward it must get."""
    penalty = spec.format_penalty
    cases = [
        ("gold", gold_completion(record), {"exact_match": spec.exact_match}),
        ("gold_in_blanks", f"  {gold_completion(record)}\n", {"exact_match": spec.exact_match}),
        ("empty", "", {"format_penalty": penalty}),
        ("words", "I do not know.", {"format_penalty": penalty}),
    ]
    make = {"gsm8k": _gsm8k_cases, "math": _math_cases}.get(record.form)
    cases += make(record, spec, penalty) if make else _program_cases(record, spec, penalty)
    weights = dict.fromkeys(COMPONENTS, spec.weights.correctness) | {"format_penalty": spec.weights.format}
    return [
        Case(
            f"{record.id}/{name}",
            record.id,
            completion,
            {part: weights[part] * paid.get(part, 0.0) for part in COMPONENTS},
        )
        for name, completion, paid in cases
    ]


def _program_cases(record: Record, spec: RewardSpec, penalty: float) -> list[tuple]:
    gold = _gold_fields(record)
    steps = record.target_program.count(")")

    def with_program(program: str) -> str:
        return json.dumps(gold | {"program": program}, ensure_ascii=False)

    partial = spec.program_partial * steps / (steps + 1)
    cases = [
        ("text_after", gold_completion(record) + " done", {"format_penalty": penalty}),
        ("no_value", with_program("divide(const_1, 0)"), {}),
        ("unclosed", gold_completion(record)[:-1], {"format_penalty": penalty}),
        ("placeholder", json.dumps(dict.fromkeys(gold, "N/A")), {"format_penalty": penalty}),
        (
            "refers_to_itself",
            with_program(f"{record.target_program}, exp(#{steps}, 2)"),
            {"program_partial": partial},
        ),
    ]
    for name in spec.required_fields:
        rest = {key: text for key, text in gold.items() if key != name}
        paid = {} if name == "program" else {"exact_match": spec.exact_match}
        cases.append((f"without_{name}", json.dumps(rest), paid | {"format_penalty": penalty}))
    if record.target_answer in ("yes", "no"):
        opposite = "greater(1, 0)" if record.target_answer == "no" else "greater(0, 1)"
        return [*cases, ("opposite", with_program(opposite), {})]
    # A last step that scales the gold's value by a known factor.
    gold_value = float(record.target_answer)
    for name, factor in (("twice", "2"), ("near", "1.02")):
        program = f"{record.target_program}, multiply(#{steps - 1}, {factor})"
        error = abs(round(gold_value * float(factor), 5) - gold_value)
        if abs(gold_value) < 1e-3:
            continue  # rounding to 5 places would hide the factor
        near = error <= spec.numeric_tolerance * abs(gold_value)
        paid = {"numeric_match": spec.numeric_match} if near else {"program_partial": partial}
        cases.append((name, with_program(program), paid))
    return cases


def _gsm8k_cases(record: Record, spec: RewardSpec, penalty: float) -> list[tuple]:
    gold = record.target_answer.replace(",", "")
    other = str(3 * int(float(gold)) + 7)
    number = {"numeric_match": spec.numeric_match}
    return [
        ("bare_mark", f"#### {gold}", {"exact_match": spec.exact_match}),
        ("dollar", f"#### ${gold}", number | {"format_penalty": penalty}),
        ("no_mark", f"The answer is {gold}.", number | {"format_penalty": penalty}),
        ("closing_period", f"#### {gold}.", number),
        ("two_numbers", f"#### {other} {gold}", number),
        ("wrong", f"#### {other}", {}),
        ("nothing_marked", "#### ", {"format_penalty": penalty}),
    ]


def _math_cases(record: Record, spec: RewardSpec, penalty: float) -> list[tuple]:
    gold = record.target_answer
    exact = {"exact_match": spec.exact_match}
    return [
        ("box_alone", rf"\boxed{{{gold}}}", exact),
        ("nested_box", rf"\boxed{{\boxed{{{gold}}}}}", exact),
        ("last_box_counts", rf"\boxed{{{gold}}}, no: \boxed{{\text{{none of these}}}}", {}),
        ("no_box", f"The answer is ${gold}$.", {"format_penalty": penalty}),
        ("unclosed_box", rf"\boxed{{{gold}", {"format_penalty": penalty}),
        ("empty_box", r"\boxed{ }", {"format_penalty": penalty}),
    ]


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
    """The case's outcome as JSON data: what was paid, and whether it is what was expected."""
    paid = task_reward(record, case.completion, spec)
    expected = case.expected | {"total": sum(case.expected.values())}
    passed = all(abs(paid[name] - expected[name]) <= AGREEMENT for name in expected)
    return {"id": case.id, "passed": passed, "paid": paid}


def as_json(case: Case) -> dict:
    """The case as JSON data, its expected total included."""
    return asdict(case) | {"expected": case.expected | {"total": sum(case.expected.values())}}
