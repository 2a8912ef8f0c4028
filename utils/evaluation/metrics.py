"""Metrics of one evaluation. Every rate is ``{"value", "ci95": [lo, hi], "n"}``, with Wilson's interval.

The denominator of every accuracy is the number of gold items: FinQA's released evaluator divides by the
number of predictions, so that items left out raise the score; here they count as wrong and are named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from utils.grading.graded_item import GradedItem
from utils.grading.tasks import task_of
from utils.statistics.accuracy_tests import fraction, rate

SCHEMA_VERSION = 1


def compute_metrics(
    items: Sequence[GradedItem], policy: str, split: str, held_out_levels: Sequence[int] = ()
) -> dict[str, Any]:
    """The content of metrics.json for one policy on one split (at least one item); see docs/evaluation.md.

    With ``held_out_levels``, those that nothing was trained on, it gives the accuracy on them and on the rest
    apart, each where there are such items.
    """
    dataset = items[0].record.dataset
    task = task_of(dataset)
    answered = [item.prediction for item in items if item.prediction is not None]
    generated = [p for p in answered if p.truncated is not None]
    missing = [item.record.id for item in items if item.prediction is None]
    metrics: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "policy": policy,
        "dataset": dataset,
        "split": split,
        "n": len(items),
        "missing": {"count": len(missing), "ids": missing},
        "accuracy": rate(sum(item.correct for item in items), len(items)),
        "accuracy_by_level": _accuracy_by(items, lambda item: item.record.level),
        "accuracy_by_type": _accuracy_by(items, lambda item: item.record.type or None),
        "format_validity": rate(sum(item.format_valid for item in items), len(items)),
        "failure_reasons": _counts(item.reason for item in items),
        "failure_details": _counts(f"{i.reason}:{i.detail}" for i in items if i.detail),
        "response_chars": _lengths([len(p.response) for p in answered if p.response is not None]),
        "response_tokens": _lengths([p.token_count for p in answered if p.token_count is not None]),
    }
    measures = [item.measures() for item in items]
    for name in task.measures:
        metrics[name] = rate(sum(measure[name] for measure in measures), len(items))
    metrics["reasoning"] = {
        name: fraction(values)
        for name in task.reasoning_measures
        if (values := [item.reasoning[name] for item in items if item.reasoning[name] is not None])
    }
    if held_out_levels:
        metrics["held_out_levels"] = sorted(held_out_levels)
        for name, held_out in (("accuracy_trained_levels", False), ("accuracy_held_out_levels", True)):
            part = [item.correct for item in items if (item.record.level in held_out_levels) == held_out]
            if part:
                metrics[name] = rate(sum(part), len(part))
    if generated:
        metrics["truncation_rate"] = rate(sum(p.truncated for p in generated), len(generated))
    return metrics


def headline(metrics: dict[str, Any]) -> dict[str, Any]:
    """The few numbers that go into the stage's manifest."""
    rates = {
        key: value["value"] for key, value in metrics.items() if isinstance(value, dict) and "ci95" in value
    }
    counts = {"n": metrics["n"], "missing": metrics["missing"]["count"]}
    own = metrics.get("teacher", {}).get("on_responses", {})
    names = {"top1_agreement": "teacher_agreement", "reverse_kl": "teacher_reverse_kl"}
    return rates | counts | {name: own[key]["value"] for key, name in names.items() if key in own}


def _accuracy_by(items: Sequence[GradedItem], key: Callable[[GradedItem], Any]) -> dict[str, Any]:
    """Accuracy of each group of items; items whose key is None belong to none."""
    total, right = Counter(), Counter()
    for item in items:
        if (group := key(item)) is not None:
            total[group] += 1
            right[group] += item.correct
    return {str(group): rate(right[group], total[group]) for group in sorted(total)}


def _counts(names: Any) -> dict[str, int]:
    return dict(sorted(Counter(name for name in names if name).items()))


def _lengths(lengths: list[int]) -> dict[str, float] | None:
    """Mean, median, 95th percentile and maximum; None where no length is known."""
    if not lengths:
        return None
    median, high = np.percentile(lengths, [50, 95])
    return {
        "mean": float(np.mean(lengths)),
        "median": float(median),
        "p95": float(high),
        "max": int(max(lengths)),
    }
