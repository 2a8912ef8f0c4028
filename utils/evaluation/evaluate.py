"""One evaluation from end to end: gold items and answers in, metrics and per-item files out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.common import UserError, write_csv, write_json, write_jsonl
from utils.config import DatasetConfig, ModelConfig
from utils.data.records import Record
from utils.evaluation.items import GradedItem, breakdown_columns, breakdown_row, prediction_row
from utils.evaluation.predictions import Prediction


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


def generate_predictions(
    records: Sequence[Record], checkpoint: Path | str, config: ModelConfig, runtime: dict[str, Any]
) -> dict[str, Prediction]:
    """Greedy responses of a policy to every record; speed goes into ``runtime``."""
    from utils.data.prompts import render_prompt
    from utils.models.loading import load_policy
    from utils.models.sampling import generate

    model, tokenizer = load_policy(checkpoint, config.model)
    prompts = [render_prompt(tokenizer, record.input_text) for record in records]
    start = time.perf_counter()
    completions = generate(
        model,
        tokenizer,
        prompts,
        max_new_tokens=config.generation.max_new_tokens,
        temperature=0.0,
        batch_size=config.generation.batch_size,
    )
    seconds = time.perf_counter() - start
    tokens = sum(len(completion.token_ids) for completion in completions)
    runtime |= {
        "generation_seconds": round(seconds, 3),
        "generated_tokens": tokens,
        "tokens_per_second": round(tokens / seconds, 1),
    }
    return {
        record.id: Prediction(
            response=completion.text,
            token_count=len(completion.token_ids),
            truncated=completion.truncated,
        )
        for record, completion in zip(records, completions, strict=True)
    }


def write_evaluation(out: Path, items: Sequence[GradedItem], metrics: dict[str, Any]) -> None:
    """Write metrics.json, breakdown.csv and samples/predictions.jsonl (schemas in docs/evaluation.md)."""
    write_json(out / "metrics.json", metrics)
    columns = breakdown_columns(items[0].record.dataset)
    write_csv(out / "breakdown.csv", [breakdown_row(item) for item in items], columns)
    write_jsonl(out / "samples" / "predictions.jsonl", (prediction_row(item) for item in items))


def summary_lines(metrics: dict[str, Any]) -> list[str]:
    """What the stage says when it is done: the accuracies, missing items and the commonest failures."""
    lines = []
    for name, value in metrics.items():
        if isinstance(value, dict) and "ci95" in value:
            low, high = value["ci95"]
            lines.append(
                f"  {name.replace('_', ' '):<20} {100 * value['value']:5.1f} % "
                f"({100 * low:.1f} to {100 * high:.1f}, n = {value['n']})"
            )
    missing = metrics["missing"]
    if missing["count"]:
        named = ", ".join(missing["ids"][:5]) + (", …" if missing["count"] > 5 else "")
        lines.append(
            f"  {missing['count']} of {metrics['n']} items have no prediction and count as wrong: {named}"
        )
    reasons = sorted(metrics["failure_reasons"].items(), key=lambda pair: (-pair[1], pair[0]))
    if reasons:
        lines.append(
            "  failures: " + ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in reasons[:6])
        )
    return lines
