"""summary.csv and summary.json: a comparison's numbers for other programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from utils.comparison.experiment_facts import ExperimentFacts
from utils.comparison.topic import Comparison
from utils.frame.pipeline import method_of

NAMES = ("method", "seed", "exact_match", "program_validity")
# Reasons of FinQA's form for an answer without a program that runs.
_NO_PROGRAM = ("missing_program", "invalid_json", "invalid_program", "cut_off", "empty", "no_answer")


def with_names(
    rows: list[dict[str, Any]], columns: list[str], comparison: Comparison
) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of summary.csv with what others call their columns, after the policy's name.

    method: what trained the policy. seed: of its run (several: a space between). exact_match: the share of
    items that are right by the data set's official rule. program_validity: the share of items answered by a
    program that runs, where answers are programs.
    """
    named = []
    for row in rows:
        results = comparison.results.get(row["policy"], ())
        trained = comparison.trained.get(row["policy"], ())
        seeds = dict.fromkeys(str(each.seed) for each in trained if each.seed is not None)
        validity = [_program_validity(result.metrics) for result in results]
        known = [value for value in validity if value is not None]
        more = {
            "method": _method(row["policy"]),
            "seed": " ".join(seeds),
            "exact_match": row.get("accuracy", ""),
            "program_validity": round(sum(known) / len(known), 6) if known else "",
        }
        named.append(row | more)
    first, *others = columns
    return named, [first, *NAMES, *others]


def summary_of(
    comparison: Comparison,
    rows: list[dict[str, Any]],
    facts: ExperimentFacts,
    conclusions: Sequence[str],
) -> dict[str, Any]:
    """The content of summary.json: what was compared and what is concluded, in words; everything that 10 said
    of each policy in each run; the tests of all pairs; what failed; and the rows of summary.csv.
    """
    return {
        "facts": facts.lines(),
        "conclusions": list(conclusions),
        "summary": rows,
        "policies": {
            name: [result.metrics for result in of_runs] for name, of_runs in comparison.results.items()
        },
        "pairs": [_plain(asdict(pair)) for pair in comparison.pairs],
        "failed": dict(comparison.failed),
    }


def _method(policy: str) -> str:
    name = policy.rpartition("/")[2]
    found = method_of(name)
    return found[0].name if found else name


def _program_validity(metrics: dict[str, Any]) -> float | None:
    """None where the answers of the data set are no programs."""
    if "program_accuracy" not in metrics:
        return None
    without = sum(metrics["failure_reasons"].get(reason, 0) for reason in _NO_PROGRAM)
    return 1 - (without + metrics["missing"]["count"]) / metrics["n"]


def _plain(value: Any) -> Any:
    """JSON data of what numpy and dataclasses hold; NaN and infinity are null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not (abs(value) < float("inf")):
        return None
    return value
