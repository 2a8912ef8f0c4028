"""What several samples per item say: pass@k and majority@k, both unbiased, both in closed form.

A policy's n samples of an item stand for its distribution of answers. pass@k is the chance that k of them,
drawn without replacement, hold a right one; majority@k the chance that the answer most often given by k of
them is right (self-consistency, Wang et al. 2022, arXiv 2203.11171).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from utils.data.records import Record
from utils.grading.tasks import task_of
from utils.models.sampling import Completion
from utils.models.settings import GenerationSection
from utils.statistics.pass_at_k import majority_at_k, mean_shares, pass_at_k, sample_ks


@dataclass(frozen=True)
class GradedSample:
    """One sampled answer; ``value`` is what was graded, as text, "" where nothing could be read; ``vote`` is
    what it counts as among wrong answers."""

    completion: Completion
    value: str
    correct: bool
    vote: str

    def row(self) -> dict[str, Any]:
        """The sample as predictions.jsonl has it."""
        return {
            "response": self.completion.text,
            "value": self.value,
            "correct": self.correct,
            "tokens": len(self.completion.token_ids),
            "truncated": self.completion.truncated,
            "token_ids": self.completion.token_ids,
        }


def grade_samples(
    record: Record, samples: Sequence[Completion], required_fields: Sequence[str] = ()
) -> list[GradedSample]:
    """Grade the samples of one record by its data set's official rule; equal texts are graded once."""
    task = task_of(record.dataset)
    grades = {
        text: task.grade(record, text, tuple(required_fields), program_accuracy=False)
        for text in dict.fromkeys(sample.text for sample in samples)
    }
    graded = [(sample, grades[sample.text]) for sample in samples]
    return [
        GradedSample(sample, each.answer, each.correct, task.vote(each.answer)) for sample, each in graded
    ]


def votes(samples: Sequence[GradedSample]) -> tuple[int, tuple[int, ...], int]:
    """How the samples of an item vote: (right ones, wrong ones by value in ascending order, unreadable ones).

    Right answers vote together, however they are written. Wrong ones do where the data set's task says so
    (`Task.vote`). What nothing could be read from has no vote.
    """
    right = sum(sample.correct for sample in samples)
    wrong = Counter(sample.vote for sample in samples if not sample.correct and sample.value)
    return right, tuple(sorted(wrong.values())), len(samples) - right - sum(wrong.values())


def sample_metrics(
    samples: Sequence[Sequence[GradedSample]],
    num_samples: int,
    generation: GenerationSection,
    rng: np.random.Generator,
    clusters: np.ndarray | None = None,
) -> dict[str, Any]:
    """What metrics.json says of the samples, over all items; one without samples counts as wrong.

    ``pass_at_k`` and ``majority_at_k`` have, by k, the mean over items (`mean_shares`), which may come in
    ``clusters``.
    """
    ks = sample_ks(num_samples)
    table = np.zeros((len(samples), 2 * len(ks)))
    for number, of_item in enumerate(samples):
        if of_item:
            right, wrong, unreadable = votes(of_item)
            table[number] = [pass_at_k(num_samples, right, k) for k in ks] + [
                majority_at_k(right, wrong, unreadable, k) for k in ks
            ]
    means = mean_shares(table, rng, clusters)
    drawn = [sample for of_item in samples for sample in of_item]
    return {
        "num_samples": num_samples,
        "temperature": generation.temperature,
        "top_p": generation.top_p,
        "top_k": generation.top_k,
        "pass_at_k": {str(k): mean for k, mean in zip(ks, means[: len(ks)], strict=True)},
        "majority_at_k": {str(k): mean for k, mean in zip(ks, means[len(ks) :], strict=True)},
        "readable": sum(bool(sample.value) for sample in drawn) / len(drawn),
        "truncated": sum(sample.completion.truncated for sample in drawn) / len(drawn),
        "distinct_per_item": sum(len({s.completion.text for s in of_item}) for of_item in samples)
        / len(samples),
    }


def sample_lines(metrics: dict[str, Any]) -> list[str]:
    """What the stage says of the samples: a line for pass@k and one for majority@k."""
    head = f"{metrics['num_samples']} samples at temperature {metrics['temperature']:g}"
    return [
        f"  {name}@k of {head}: "
        + ", ".join(f"{k}: {100 * rate['value']:.1f} %" for k, rate in metrics[key].items())
        for name, key in (("pass", "pass_at_k"), ("majority", "majority_at_k"))
    ]
