"""The acceptance criteria of the stages that train, from their log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from utils.frame.criteria import Criteria, judged
from utils.frame.pipeline import Method
from utils.training.validation import best_row

VALID = 0.9  # answers of valid form after supervised fine-tuning
LARGEST_KL = 0.5  # to the reference, nats per token: beyond it little of the start is left
LARGEST_CUT_OFF = 0.2  # share of sampled completions without an end
_LAST = 5  # log rows that a level is the median of


def training_criteria(
    method: Method, history: Sequence[dict[str, Any]], metrics: Mapping[str, Any]
) -> Criteria:
    """The criteria of a method's stage by its ``logs/metrics.jsonl`` and its manifest's ``metrics``, as far
    as these have their numbers.
    """
    found: Criteria = {}
    validated = [row for row in history if "val_reward" in row]
    if validated:
        best, first = best_row(history), validated[0]
        if not method.samples and not method.from_pairs:
            found["answers of valid form"] = judged(best["val_format_valid"], at_least=VALID)
        if first["step"] == 0:
            found["validation reward over the start"] = judged(
                best["val_reward"] - first["val_reward"], above=0.0
            )
    if method.samples:
        found |= _of_rollouts(history)
    elif method.from_pairs:
        found |= _of_pairs(history)
    else:
        left_out, taught = metrics.get("left_out", 0), metrics.get("demonstrations", 0)
        found["demonstrations left out"] = judged(left_out / max(1, left_out + taught), at_most=0.1)
    return found


def _of_rollouts(history: Sequence[dict[str, Any]]) -> Criteria:
    found: Criteria = {}
    # Where groups are replaced, the reward is that of those that are left, which says little of the policy.
    key = "train_accuracy" if _values(history, "groups_discarded") else "reward"
    values = _values(history, key)
    if len(values) >= 2:
        part = max(1, len(values) // 4)
        rise = float(np.mean(values[-part:]) - np.mean(values[:part]))
        name = "reward" if key == "reward" else "accuracy of samples"
        found[f"{name}, last over first quarter"] = judged(rise, above=0.0)
    for key, name, largest in (
        ("kl", "KL to the reference, nats per token", LARGEST_KL),
        ("completions/clipped_ratio", "completions cut off", LARGEST_CUT_OFF),
    ):
        if values := _values(history, key):
            found[name] = judged(float(np.median(values[-_LAST:])), at_most=largest)
    return found


def _of_pairs(history: Sequence[dict[str, Any]]) -> Criteria:
    found: Criteria = {}
    accuracies, margins = (
        _values(history, "val_preference_accuracy"),
        _values(history, "val_preference_margin"),
    )
    if len(accuracies) >= 2:
        found["preference accuracy over the start"] = judged(accuracies[-1] - accuracies[0], above=0.0)
        found["preference margin"] = judged(margins[-1], above=0.0)
    return found


def _values(history: Sequence[dict[str, Any]], key: str) -> list[float]:
    return [row[key] for row in history if row.get(key) is not None]
