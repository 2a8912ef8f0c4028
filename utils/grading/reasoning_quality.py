"""How an answer was reached: measures in [0, 1] of one item, defined in docs/reasoning_quality.md.

None of them says that an answer is right, and each can be met without reasoning.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Hashable, Sequence

from utils.grading.equations import MAX_CHARS, Equation, plain_arithmetic

LAST_STEPS = 3  # among how many of the last equations the final answer must be a result
MAX_NUMBER_CHARS = 64  # a longer run of digits is no result


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


# A number behind "=" with which an equation ends: "= 4 + 5 = 9" states the result 9.
_RESULT = re.compile(
    r"=[\s~≈]*+(-?(?:[0-9]{1,3}(?:,[0-9]{3})++|[0-9]++)(?:\.[0-9]++)?+|-?\.[0-9]++)"
    r"(?![0-9]|,[0-9]|\s*+(?:[-+*^(=]|/\s*+[0-9(]))"
)
_BOX = re.compile(r"\\boxed\s*\{")


def stated_results(text: str) -> list[float]:
    """The numbers that stand at the end of an equation, in order, whatever is on its left side."""
    plain = plain_arithmetic(_BOX.sub("", text[-MAX_CHARS:]))
    numbers = (match[1] for match in _RESULT.finditer(plain) if len(match[1]) <= MAX_NUMBER_CHARS)
    return [float(number.replace(",", "")) for number in numbers]


def support_in_text(
    answer: float, response: str, stated: Sequence[Equation], states_calculations: bool
) -> float | None:
    """Whether one of the last equations ends in the final answer and is not false where it can be computed.

    Where no equation is stated, nothing supports an answer that is to state its calculations (0), and nothing
    is said of one that may follow from words or algebra (None).
    """
    results = stated_results(response)
    if not results:
        return 0.0 if states_calculations else None
    verdicts = [equation.holds for equation in stated if _same(equation.stated, answer)]
    disproved = bool(verdicts) and not any(verdicts)
    return float(not disproved and any(_same(result, answer) for result in results[-LAST_STEPS:]))


def _same(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9)
