"""One evaluation from end to end: gold items and answers in, metrics and per-item files out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.common import UserError, derive_seed, write_csv, write_json, write_jsonl
from utils.config import DatasetConfig, ModelConfig
from utils.data.records import Record
from utils.evaluation.items import GradedItem, breakdown_columns, breakdown_row, prediction_row
from utils.evaluation.predictions import Prediction

if TYPE_CHECKING:  # grading outside predictions needs no model
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from utils.models.sampling import Completion
    from utils.models.teacher import Teacher
    from utils.stage import StageContext


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


@dataclass(frozen=True)
class Answers:
    """A policy with its greedy answers: per record, the prompt's token ids and the completion.

    The completion is None where prompt and ``max_new_tokens`` exceed the model's positions.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    records: Sequence[Record]
    prompts: list[list[int]]
    completions: list[Completion | None]

    @property
    def unanswered(self) -> list[str]:
        """Ids of the records that the policy could not be asked."""
        pairs = zip(self.records, self.completions, strict=True)
        return [record.id for record, completion in pairs if completion is None]

    def predictions(self) -> dict[str, Prediction]:
        """What is graded, by record id; a record that could not be asked has no entry and counts as wrong."""
        return {
            record.id: Prediction(
                response=completion.text,
                token_count=len(completion.token_ids),
                truncated=completion.truncated,
            )
            for record, completion in zip(self.records, self.completions, strict=True)
            if completion is not None
        }


def ask_policy(
    ctx: StageContext, records: Sequence[Record], checkpoint: Path | str, compare: bool
) -> tuple[dict[str, Prediction], dict[str, Any]]:
    """A policy's greedy answers by record id, and what metrics.json has of its teacher.

    The latter is {"teacher": …}, or {} unless ``compare`` and the model tier names a teacher. Speed goes into
    ``ctx.runtime``. Raises UserError for a teacher that cannot be used, before anything is generated.
    """
    if not records:
        return {}, {}
    config = ctx.config.model
    teacher = load_teacher(config, checkpoint) if compare else None
    answers = generate_answers(
        records, checkpoint, config, ctx.runtime, partial(ctx.progress, description="answering")
    )
    if unanswered := answers.unanswered:
        named = ", ".join(unanswered[:5]) + (", …" if len(unanswered) > 5 else "")
        ctx.log(
            f"WARNING: {len(unanswered)} prompts leave no room for generation.max_new_tokens in the model's "
            f"positions; they are not answered and count as wrong: {named}"
        )
    if teacher is None:
        return answers.predictions(), {}
    progress = partial(ctx.progress, description="comparing with the teacher")
    start = time.perf_counter()
    against = compare_answers(answers, teacher, ctx.seed, progress)
    ctx.runtime["teacher_metrics_seconds"] = round(time.perf_counter() - start, 3)
    return answers.predictions(), {"teacher": against}


def generate_answers(
    records: Sequence[Record],
    checkpoint: Path | str,
    config: ModelConfig,
    runtime: dict[str, Any],
    progress: Callable[[list], Any] = iter,
) -> Answers:
    """Greedy responses of a policy to every record, at least one; speed goes into ``runtime``.

    Raises UserError where no prompt at all leaves room for an answer.
    """
    from utils.data.prompts import render_prompt
    from utils.models.loading import load_policy
    from utils.models.sampling import generate

    model, tokenizer = load_policy(checkpoint, config.model)
    texts = [render_prompt(tokenizer, record.input_text) for record in records]
    prompts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    limit = getattr(model.config, "max_position_embeddings", None) or float("inf")
    fits = [len(prompt) + config.generation.max_new_tokens <= limit for prompt in prompts]
    if not any(fits):
        raise UserError(
            f"all {len(prompts)} prompts with max_new_tokens {config.generation.max_new_tokens} exceed the "
            f"model's {limit} positions; lower generation.max_new_tokens"
        )
    start = time.perf_counter()
    completions = iter(
        generate(
            model,
            tokenizer,
            [text for text, fit in zip(texts, fits, strict=True) if fit],
            max_new_tokens=config.generation.max_new_tokens,
            temperature=0.0,
            batch_size=config.generation.batch_size,
            progress=progress,
        )
    )
    seconds = time.perf_counter() - start
    answers = Answers(
        model, tokenizer, records, prompts, [next(completions) if fit else None for fit in fits]
    )
    tokens = sum(len(completion.token_ids) for completion in answers.completions if completion)
    runtime |= {
        "generation_seconds": round(seconds, 3),
        "generated_tokens": tokens,
        "tokens_per_second": round(tokens / seconds, 1),
    }
    return answers


def load_teacher(config: ModelConfig, checkpoint: Path | str) -> Teacher | None:
    """The teacher that the policy is held against, None where the model tier names none.

    Raises UserError that says how to do without where it cannot be loaded or compared.
    """
    from utils.evaluation.teacher_metrics import WITHOUT
    from utils.models.loading import load_tokenizer
    from utils.models.teacher import Teacher

    if not config.model.teacher_name_or_path:
        return None
    try:
        return Teacher.load(config.model, load_tokenizer(checkpoint))
    except UserError as error:
        raise UserError(f"{error}; {WITHOUT}") from None


def compare_answers(
    answers: Answers, teacher: Teacher, seed: int, progress: Callable[[list], Any] = iter
) -> dict[str, Any]:
    """The policy against its teacher on its own answers and on the gold text, as in metrics.json."""
    import numpy as np

    from utils.data.prompts import render_completion
    from utils.evaluation.teacher_metrics import compare_with_teacher

    gold = [render_completion(answers.tokenizer, record.target_text) for record in answers.records]
    texts = {
        "on_responses": [completion and completion.token_ids for completion in answers.completions],
        "on_gold": answers.tokenizer(gold, add_special_tokens=False)["input_ids"],
    }
    rng = np.random.default_rng(derive_seed(seed, "teacher metrics"))
    return compare_with_teacher(answers.model, teacher, answers.prompts, texts, rng, progress)


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
    if "teacher" in metrics:
        from utils.evaluation.teacher_metrics import teacher_lines

        lines += teacher_lines(metrics["teacher"])
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
