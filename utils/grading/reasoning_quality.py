"""How an answer was reached: measures in [0, 1] of one item, defined in docs/reasoning_quality.md.

========================= ================================================ ======================
measure                   what it is                                       applies to
========================= ================================================ ======================
step_coverage             share of the gold's steps that the answer has,   all, where the gold
                          as multisets: a step counts as often as both     states steps
                          have it
step_order                the same in the gold's order: the longest        likewise
                          common subsequence over the gold's length
operand_grounding         share of the program's literal operands that     FinQA, embedded set,
                          the report holds (``reasoning_score``'s)         where there are steps
arithmetic_consistency    share of the stated equations that hold when     GSM8K, MATH, where the
                          they are computed again                          answer states any
answer_support            1 where one of the last equations ends in the    answers with a number;
                          final answer and is not false, else 0; of a      programs with an
                          program, where its value is the stated answer    ``answer`` field
========================= ================================================ ======================

None of them says that an answer is right, and each can be met without reasoning.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Hashable, Sequence

from utils.data.records import Record, form_of
from utils.grading.equations import (
    MAX_CHARS,
    Equation,
    grounded_steps,
    plain_arithmetic,
    stated_equations,
)
from utils.grading.failure_reasons import predicted_steps
from utils.grading.grade import PROGRAM_DATASETS, Grade
from utils.grading.outside_predictions import Prediction
from utils.grading.program import program_steps, tokenize_program
from utils.grading.solution_steps import equation_keys, plain_number, program_keys
from utils.grading.tasks.gsm8k import extract_strict, normalize_number
from utils.grading.tasks.hendrycks_math import plain_decimal

LAST_STEPS = 3  # among how many of the last equations the final answer must be a result


def reasoning_names(dataset: str) -> tuple[str, ...]:
    """The measures that a data set has."""
    own = "operand_grounding" if form_of(dataset) in PROGRAM_DATASETS else "arithmetic_consistency"
    return ("step_coverage", "step_order", own, "answer_support")


def reasoning_quality(
    record: Record, prediction: Prediction | None, graded: Grade | None
) -> dict[str, float | None]:
    """The data set's measures of one item, by name; None where a measure does not apply.

    Args:
        record: the gold item.
        prediction, graded: its answer and grade; both None where there is no answer, which has no steps.
    """
    answered = prediction is not None and graded is not None
    if record.form in PROGRAM_DATASETS:
        gold = program_keys(program_steps(tokenize_program(record.target_program)))
        steps = predicted_steps(prediction, graded) if answered else []
        own = program_keys(steps)
        third = grounded_steps(record.input_text, steps) if steps else None
        support = _support_by_program(graded) if answered else None
    else:
        stated = stated_equations(prediction.response or "") if answered else []
        gold, own = equation_keys(stated_equations(record.target_text)), equation_keys(stated)
        third = sum(equation.holds for equation in stated) / len(stated) if stated else None
        support = _support_in_text(record, prediction, graded, stated) if answered else None
    values = (step_coverage(own, gold), step_order(own, gold), third, support)
    return dict(zip(reasoning_names(record.dataset), values, strict=True))


def step_coverage(own: Sequence[Hashable], gold: Sequence[Hashable]) -> float | None:
    """Share of the gold's steps found among one's own, as multisets; None where the gold has none."""
    return (Counter(own) & Counter(gold)).total() / len(gold) if gold else None


def step_order(own: Sequence[Hashable], gold: Sequence[Hashable]) -> float | None:
    """Length of the longest common subsequence over that of the gold; None where the gold has no steps."""
    if not gold:
        return None
    longest = [0] * (len(gold) + 1)  # of own's steps so far and the gold's first n
    for step in own:
        before = longest[:]
        for n, other in enumerate(gold):
            longest[n + 1] = before[n] + 1 if step == other else max(before[n + 1], longest[n])
    return longest[-1] / len(gold)


def _support_by_program(graded: Grade) -> float | None:
    """Whether the ``answer`` field says what the program gives: a number rounded or cut to the decimals that
    are stated, also read as percent where it has the sign. None where one of the two is missing."""
    stated = graded.parsed.get("answer", "").strip()
    if graded.value is None or not stated:
        return None
    if isinstance(graded.value, str):
        return float(stated.lower() == graded.value)
    number = plain_number(stated)
    if number is None:
        return 0.0
    unit = 10.0 ** -(len(stated.rstrip("% ").partition(".")[2]) if "." in stated else 0)
    # Without decimals a number is meant exactly: 3 is no rounding of 3.4. Values have 5 places.
    unit = max(unit if "." in stated else 0.0, 1e-5)
    readings = [(number, unit / 100), (100 * number, unit)] if stated.endswith("%") else [(number, unit)]
    return float(
        any(
            math.isclose(graded.value, value, rel_tol=1e-9, abs_tol=0.999999 * step)
            for value, step in readings
        )
    )


# A number behind "=" with which an equation ends: "= 4 + 5 = 9" states the result 9.
_RESULT = re.compile(
    r"=[\s~≈]*+(-?(?:[0-9]{1,3}(?:,[0-9]{3})++|[0-9]++)(?:\.[0-9]++)?+|-?\.[0-9]++)"
    r"(?![0-9]|,[0-9]|\s*+(?:[-+*^(=]|/\s*+[0-9(]))"
)
_BOX = re.compile(r"\\boxed\s*\{")


def stated_results(text: str) -> list[float]:
    """The numbers that stand at the end of an equation, in order, whatever is on its left side."""
    plain = plain_arithmetic(_BOX.sub("", text[-MAX_CHARS:]))
    numbers = (normalize_number(match[1]) for match in _RESULT.finditer(plain))
    return [float(number) for number in numbers if number is not None]


def _support_in_text(
    record: Record, prediction: Prediction, graded: Grade, stated: Sequence[Equation]
) -> float | None:
    """Whether one of the last equations ends in the final answer and is not false where it can be computed.

    The answer is the number where the data set's format puts it (``#### 18``, ``\\boxed{18}``); None where no
    number stands there. Where no equation is stated, nothing supports a GSM8K answer (0); of a MATH answer,
    which may follow from words or algebra, nothing is said (None).
    """
    response = prediction.response or ""
    if record.form == "gsm8k":
        number = normalize_number((extract_strict(response) or "").rstrip("."))
    else:
        number = plain_decimal(graded.value) if isinstance(graded.value, str) else None
    if number is None:
        return None
    answer = float(number)
    results = stated_results(response)
    if not results:
        return 0.0 if record.form == "gsm8k" else None
    verdicts = [equation.holds for equation in stated if _same(equation.stated, answer)]
    disproved = bool(verdicts) and not any(verdicts)
    return float(not disproved and any(_same(result, answer) for result in results[-LAST_STEPS:]))


def _same(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9)
