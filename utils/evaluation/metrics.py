"""Metrics of one evaluation. Every rate is ``{"value", "ci95": [lo, hi], "n"}``, with Wilson's interval.

Where items share a report, its interval counts reports, and the rate has two more keys: "clusters", how many
reports there are, and "plain95", the interval that takes the items as independent.

The denominator of every accuracy is the number of gold items: FinQA's released evaluator divides by the
number of predictions, so that items left out raise the score; here they count as wrong and are named.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from utils.grading.graded_item import GradedItem
from utils.grading.tasks import task_of
from utils.statistics.clusters import cluster_numbers, clustered_rate, share

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
    generated = [item for item in items if item.prediction and item.prediction.truncated is not None]
    missing = [item.record.id for item in items if item.prediction is None]
    metrics: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "policy": policy,
        "dataset": dataset,
        "split": split,
        "n": len(items),
        "missing": {"count": len(missing), "ids": missing},
        "accuracy": _rate([item.correct for item in items], items),
        "accuracy_by_level": _accuracy_by(items, lambda item: item.record.level),
        "accuracy_by_type": _accuracy_by(items, lambda item: item.record.type or None),
        "format_validity": _rate([item.format_valid for item in items], items),
        "failure_reasons": _counts(item.reason for item in items),
        "failure_details": _counts(f"{i.reason}:{i.detail}" for i in items if i.detail),
        "response_chars": _lengths([len(p.response) for p in answered if p.response is not None]),
        "response_tokens": _lengths([p.token_count for p in answered if p.token_count is not None]),
    }
    measures = [item.measures() for item in items]
    for name in task.measures:
        metrics[name] = _rate([measure[name] for measure in measures], items)
    metrics["reasoning"] = {
        name: share([item.reasoning[name] for item in having], clusters_of(having))
        for name in task.reasoning_measures
        if (having := [item for item in items if item.reasoning[name] is not None])
    }
    if held_out_levels:
        metrics["held_out_levels"] = sorted(held_out_levels)
        for name, held_out in (("accuracy_trained_levels", False), ("accuracy_held_out_levels", True)):
            part = [item for item in items if (item.record.level in held_out_levels) == held_out]
            if part:
                metrics[name] = _rate([item.correct for item in part], part)
    if generated:
        metrics["truncation_rate"] = _rate([item.prediction.truncated for item in generated], generated)
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
    groups = defaultdict(list)
    for item in items:
        if (group := key(item)) is not None:
            groups[group].append(item)
    return {
        str(group): _rate([item.correct for item in members], members)
        for group, members in sorted(groups.items())
    }


def clusters_of(items: Sequence[GradedItem]) -> np.ndarray | None:
    """The number of each item's report; None where no two items share one."""
    return cluster_numbers([item.record.report for item in items])


def _rate(flags: Sequence[bool], items: Sequence[GradedItem]) -> dict[str, Any]:
    return clustered_rate(flags, clusters_of(items))


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
