"""One evaluation from end to end: gold items and answers in, metrics and per-item files out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.data.prompts import template_facts
from utils.data.records import Record
from utils.data.settings import DatasetConfig
from utils.evaluation.metrics import clusters_of, compute_metrics
from utils.frame.files import UserError, derive_seed, write_csv, write_json, write_jsonl
from utils.frame.manifest import RESUME
from utils.frame.processes import is_main_process, merge_shares, share
from utils.grading.graded_item import (
    GradedItem,
    breakdown_row,
    grade_items,
    prediction_row,
)

if TYPE_CHECKING:  # grading outside predictions needs no model
    from transformers import PreTrainedModel

    from utils.evaluation.sampled_answers import GradedSample
    from utils.frame.stage import StageContext
    from utils.models.sampling import Completion
    from utils.models.teacher import Teacher
    from utils.rewards.spec import RewardSpec


@dataclass(frozen=True)
class Questions:
    """What every policy of an evaluation is asked and held against.

    Attributes:
        split: train, val or test.
        records: the gold items, at least one.
        held_out_levels: levels that nothing was trained on.
        spec: the run's reward specification.
        teacher: None where there is none, or it was not asked for.
        reference: the policy that training started from; None likewise.
    """

    split: str
    records: Sequence[Record]
    held_out_levels: Sequence[int]
    spec: RewardSpec
    teacher: Teacher | None = None
    reference: PreTrainedModel | None = None


def gold_file(config: DatasetConfig, split: str) -> Path:
    """The raw file of a split below the data root. Raises UserError where the data set has none."""
    from utils.data.sources import raw_files

    files = raw_files(config)
    if split not in files:
        raise UserError(
            f"{config.dataset} has no {split} file of its own (it is cut from train): "
            f"use --split {' or '.join(files)}"
        )
    return files[split]


def evaluate_policy(
    ctx: StageContext, questions: Questions, policy: str, checkpoint: Path | str, out: Path
) -> dict[str, Any]:
    """Ask a policy, grade its answers and write the files of its evaluation below ``out``.

    Returns the content of metrics.json, which is written last. Speed goes into ``ctx.runtime``. Several
    processes share the models' work and the grading of samples; only the first one writes, and the others
    return {}.
    """
    from utils.evaluation.answers import answer_records, named
    from utils.evaluation.journal import JOURNAL
    from utils.evaluation.reward_components import reward_components, reward_metrics
    from utils.evaluation.sampled_answers import sample_metrics
    from utils.evaluation.token_pass import token_pass

    config, records, spec = ctx.config, questions.records, questions.spec
    ctx.log(f"{policy}: answering {len(records)} items of the {questions.split} split")
    journal = out / RESUME / JOURNAL
    progress = partial(ctx.progress, description="answering")
    count = config.options.num_samples
    answers = answer_records(
        records, checkpoint, config.model, count, ctx.seed, journal, ctx.runtime, progress, ctx.warn
    )
    ctx.metrics |= template_facts(answers.tokenizer)
    if unanswered := answers.unanswered:
        ctx.log(
            f"WARNING: {len(unanswered)} prompts leave no room for generation.max_new_tokens in the model's "
            f"positions; they are not answered and count as wrong: {named(unanswered)}"
        )
    passed = token_pass(ctx, answers, questions.teacher, questions.reference, spec, checkpoint)
    samples = None if answers.samples is None else _graded_samples(ctx, records, answers.samples, spec)
    if not is_main_process():
        return {}
    items = grade_items(
        ctx.progress(records, description="grading"), answers.predictions(), spec.required_fields
    )
    metrics = compute_metrics(items, policy, questions.split, questions.held_out_levels) | passed.metrics
    rewards = reward_components(records, answers, passed, spec, [item.grade for item in items])
    rng, reports = np.random.default_rng(derive_seed(ctx.seed, "rewards")), [row.report for row in records]
    metrics["rewards"] = reward_metrics(rewards, rng, reports)
    columns = {"token_ids": [each and each.token_ids for each in answers.completions], "rewards": rewards}
    if samples is not None:
        rng = np.random.default_rng(derive_seed(ctx.seed, "samples"))
        metrics["samples"] = sample_metrics(samples, count, config.model.generation, rng, clusters_of(items))
        columns["samples"] = [[sample.row() for sample in of_item] for of_item in samples]
    write_evaluation(out, items, metrics, columns, passed.rows)
    return metrics


def _graded_samples(
    ctx: StageContext, records: Sequence[Record], samples: Sequence[list[Completion]], spec: RewardSpec
) -> list[list[GradedSample]]:
    """Grade the samples of every record, each process its share of the records."""
    from utils.evaluation.sampled_answers import grade_samples

    start = time.perf_counter()
    pairs = share(list(zip(records, samples, strict=True)))
    progress = ctx.progress(pairs, description="grading samples")
    graded = merge_shares([grade_samples(record, drawn, spec.required_fields) for record, drawn in progress])
    ctx.runtime["sample_grading_seconds"] = round(time.perf_counter() - start, 3)
    return graded


def write_evaluation(
    out: Path,
    items: Sequence[GradedItem],
    metrics: dict[str, Any],
    columns: dict[str, Sequence[Any]] | None = None,
    tokens: Sequence[dict[str, Any]] = (),
) -> None:
    """Write the files of one evaluation (schemas in docs/evaluation.md), metrics.json last.

    Args:
        columns: more keys of predictions.jsonl, a value for every item.
        tokens: rows of samples/tokens.jsonl, which is not written where there are none.
    """
    columns = dict.fromkeys(("token_ids", "rewards"), [None] * len(items)) | (columns or {})
    more = ({key: values[row] for key, values in columns.items()} for row in range(len(items)))
    rows = (prediction_row(item) | extra for item, extra in zip(items, more, strict=True))
    write_jsonl(out / "samples" / "predictions.jsonl", rows)
    if tokens:
        write_jsonl(out / "samples" / "tokens.jsonl", tokens)
    breakdown = [breakdown_row(item) for item in items]
    write_csv(out / "breakdown.csv", breakdown, list(breakdown[0]))
    write_json(out / "metrics.json", metrics)


def summary_lines(metrics: dict[str, Any]) -> list[str]:
    """What the stage says when it is done: the accuracies, missing items and the commonest failures."""
    lines = []
    for name, value in metrics.items():
        if isinstance(value, dict) and "ci95" in value:
            low, high = value["ci95"]
            lines.append(
                f"  {name.replace('_', ' '):<20} {100 * value['value']:5.1f} % "
                f"({100 * low:.1f} to {100 * high:.1f}, n = {value['n']}{_of_reports(value)})"
            )
    if "teacher" in metrics or "reference" in metrics:
        from utils.evaluation.distances import distance_lines

        lines += distance_lines(metrics)
    if "samples" in metrics:
        from utils.evaluation.sampled_answers import sample_lines

        lines += sample_lines(metrics["samples"])
    if count := metrics["missing"]["count"]:
        named = ", ".join(metrics["missing"]["ids"][:5]) + ", …" * (count > 5)
        lines.append(f"  {count} of {metrics['n']} items have no prediction and count as wrong: {named}")
    reasons = sorted(metrics["failure_reasons"].items(), key=lambda pair: (-pair[1], pair[0]))[:6]
    if reasons:
        lines.append("  failures: " + ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in reasons))
    return lines


def _of_reports(rate: dict[str, Any]) -> str:
    return f" of {rate['clusters']} reports" if "clusters" in rate else ""
