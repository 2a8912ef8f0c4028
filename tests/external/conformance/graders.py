"""Graders of the conformance cases: this repository's, math-verify as it is, and equal strings."""

from utils.grading.execute import execute, execution_match, parse_gold_value
from utils.grading.program import tokenize_program
from utils.grading.tasks.hendrycks_math import math_equal


def ours(case: dict) -> bool:
    return math_equal(case["gold"], case["answer"])


def math_verify(case: dict) -> bool:
    """math-verify's defaults, both sides as it asks for them: in dollars."""
    from math_verify import parse, verify

    return verify(parse(f"${case['gold']}$"), parse(f"${case['answer']}$"))


def equal_strings(case: dict) -> bool:
    return case["gold"].strip() == case["answer"].strip()


def ours_finqa(case: dict) -> bool:
    execution = execute(tokenize_program(case["program"]), case["table"])
    return execution_match(execution, parse_gold_value(case["gold"]))


def equal_programs(case: dict) -> bool:
    return case["program"].strip() == case["gold_program"]
