"""Gold items and predictions brought together, one graded item per gold item, in file order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from utils.data.records import Record, form_of
from utils.grading.failure_reasons import failure_reason
from utils.grading.grade import PROGRAM_DATASETS, Grade, grade, grade_program_tokens
from utils.grading.outside_predictions import Prediction
from utils.grading.reasoning_quality import reasoning_names, reasoning_quality
from utils.grading.tasks.gsm8k import extract_strict

MAX_SHOWN_CHARS = 200  # of a value or gold in breakdown.csv; predictions.jsonl has them whole

# Names of the official measures as they appear in metrics.json, by the grader's names.
MEASURES = {
    "execution_match": "execution_accuracy",
    "program_match": "program_accuracy",
    "strict_match": "strict_accuracy",
    "flexible_match": "flexible_accuracy",
    "equal": "equality_accuracy",
}


@dataclass(frozen=True)
class GradedItem:
    """One gold item with its prediction (None where it is missing) and its grade (None likewise).

    ``reason`` and ``detail`` say why it is wrong ("" where it is right); ``reasoning`` holds the measures of
    reasoning quality by name (None where one does not apply).
    """

    record: Record
    prediction: Prediction | None
    grade: Grade | None
    reason: str
    detail: str
    reasoning: dict[str, float | None]

    @property
    def correct(self) -> bool:
        """By the data set's official rule; a missing prediction is wrong."""
        return self.grade is not None and self.grade.correct

    @property
    def format_valid(self) -> bool:
        """Whether the prediction has the form asked for; a missing one has not."""
        return self.grade is not None and self.grade.format_valid

    @property
    def value(self) -> str:
        """What was graded, as text; "" where there is nothing."""
        if self.grade is None or self.grade.value is None:
            return ""
        if self.record.form == "gsm8k":
            return extract_strict(self.prediction.response) or ""
        return str(self.grade.value)

    @property
    def program(self) -> str:
        """The predicted program as text; "" where there is none."""
        if self.prediction is None or self.grade is None:
            return ""
        if self.prediction.program_tokens is not None:
            return " ".join(self.prediction.program_tokens)
        return self.grade.parsed.get("program", "")

    def measures(self) -> dict[str, bool]:
        """The data set's measures of this item by their names in metrics.json."""
        names = measure_names(self.record.dataset)
        if self.grade is None:
            return dict.fromkeys(names, False)
        official = {MEASURES[key]: value for key, value in self.grade.official.items() if key in MEASURES}
        return {name: official.get(name, self.grade.tolerant) for name in names}


def measure_names(dataset: str) -> tuple[str, ...]:
    """The accuracies reported for a data set; the first is its official ``accuracy``."""
    form = form_of(dataset)
    if form in PROGRAM_DATASETS:
        return ("execution_accuracy", "program_accuracy", "tolerant_accuracy")
    return ("strict_accuracy", "flexible_accuracy") if form == "gsm8k" else ("equality_accuracy",)


def grade_items(
    records: Iterable[Record], predictions: Mapping[str, Prediction], required_fields: Sequence[str] = ()
) -> list[GradedItem]:
    """Grade every gold item, in order.

    Args:
        records: the gold items.
        predictions: by item id; an item without one is wrong.
        required_fields: JSON fields that a program response must fill; empty for the data set's own.
    """
    items = []
    for record in records:
        prediction = predictions.get(record.id)
        graded = None
        if prediction is not None and prediction.program_tokens is not None:
            graded = grade_program_tokens(record, list(prediction.program_tokens))
        elif prediction is not None:
            graded = grade(record, prediction.response, required_fields)
        reason, detail = failure_reason(record, prediction, graded)
        quality = reasoning_quality(record, prediction, graded)
        items.append(GradedItem(record, prediction, graded, reason, detail, quality))
    return items


def breakdown_row(item: GradedItem) -> dict[str, Any]:
    """The item's row of breakdown.csv: flags as 0 or 1, unknown lengths and levels blank."""
    record, prediction = item.record, item.prediction
    return {
        "id": record.id,
        "correct": int(item.correct),
        "level": "" if record.level is None else record.level,
        "type": record.type,
        "failure_reason": item.reason,
        "failure_detail": item.detail,
        "format_valid": int(item.format_valid),
        **{name.removesuffix("_accuracy"): int(value) for name, value in item.measures().items()},
        "value": _shown(item.value),
        "gold": _shown(record.target_answer),
        "tokens": _blank(prediction.token_count if prediction else None),
        "truncated": _blank(prediction.truncated if prediction else None),
        **{name: "" if value is None else round(value, 4) for name, value in item.reasoning.items()},
    }


def breakdown_columns(dataset: str) -> list[str]:
    """The columns of breakdown.csv, in order."""
    measures = [name.removesuffix("_accuracy") for name in measure_names(dataset)]
    head = ["id", "correct", "level", "type", "failure_reason", "failure_detail", "format_valid"]
    return [*head, *measures, "value", "gold", "tokens", "truncated", *reasoning_names(dataset)]


def prediction_row(item: GradedItem) -> dict[str, Any]:
    """The item's line of samples/predictions.jsonl (see docs/evaluation.md)."""
    record, prediction = item.record, item.prediction
    return {
        "id": record.id,
        "question": record.question,
        "response": prediction.response if prediction else None,
        "program": item.program,
        "value": item.value,
        "correct": item.correct,
        "gold": record.target_answer,
        "gold_program": record.target_program,
        "level": record.level,
        "type": record.type,
        "measures": item.measures(),
        "format_valid": item.format_valid,
        "failure_reason": item.reason,
        "failure_detail": item.detail,
        "tokens": prediction.token_count if prediction else None,
        "truncated": prediction.truncated if prediction else None,
        "reasoning": item.reasoning,
    }


def _blank(value: int | bool | None) -> int | str:
    return "" if value is None else int(value)


def _shown(text: str) -> str:
    """Text for one cell: on one line, without control characters, of bounded length."""
    line = "".join(char if char.isprintable() else " " for char in text)
    return line if len(line) <= MAX_SHOWN_CHARS else line[: MAX_SHOWN_CHARS - 1] + "…"
