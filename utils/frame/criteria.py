"""Acceptance criteria: what a stage's result should be like, with the value that it has and pass or fail.

A criterion never decides an exit code: it says at a glance what to look at. They stand in the manifest, on
the screen at the stage's end, in run_manifest.json and in 11's report.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

_HOLDS = {"at_least": operator.ge, "above": operator.gt, "at_most": operator.le, "equal_to": operator.eq}
PASSED, FAILED = "pass", "FAIL"

Criteria = dict[str, dict[str, Any]]  # name -> value, the bound under its kind, passed


def judged(value: float | None, **bound: float) -> dict[str, Any]:
    """A criterion's entry: its value (six decimals), one bound (at_least, above, at_most, equal_to), passed.

    None is a value that there is not, and fails.
    """
    [(kind, limit)] = bound.items()
    value = None if value is None else round(float(value), 6)
    passed = value is not None and bool(_HOLDS[kind](value, limit))
    return {"value": value, kind: limit, "passed": passed}


def criteria_lines(criteria: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each criterion; one that failed looks different."""
    return [f"  [{verdict(found)}] {name}: {in_words(found)}" for name, found in criteria.items()]


def verdict(found: Mapping[str, Any]) -> str:
    """ "pass" or "FAIL"."""
    return PASSED if found["passed"] else FAILED


def in_words(found: Mapping[str, Any]) -> str:
    """ "0.97 (at least 0.9)"."""
    value = "no value" if found["value"] is None else f"{found['value']:.4g}"
    return f"{value} ({bound_in_words(found)})"


def bound_in_words(found: Mapping[str, Any]) -> str:
    """ "at least 0.9"."""
    [(kind, limit)] = [(kind, found[kind]) for kind in _HOLDS if kind in found]
    return f"{kind.replace('_', ' ')} {limit:g}"
