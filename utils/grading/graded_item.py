"""Gold items and predictions brought together, one graded item per gold item, in file order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from utils.data.records import Record
from utils.grading.outside_predictions import Prediction
from utils.grading.task import Grade, Task
from utils.grading.tasks import task_of

MAX_SHOWN_CHARS = 200  # of a value or gold in breakdown.csv; predictions.jsonl has them whole


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
        return "" if self.grade is None else self.grade.answer

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
        names = task_of(self.record.dataset).measures
        if self.grade is None:
            return dict.fromkeys(names, False)
        found = self.grade.official | {"tolerant": self.grade.tolerant}
        return {name: found[key] for name, key in names.items()}


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
        task, prediction = task_of(record.dataset), predictions.get(record.id)
        response = (prediction and prediction.response) or ""
        graded = None
        if prediction is not None and prediction.program_tokens is not None:
            graded = task.grade_program(record, list(prediction.program_tokens))
        elif prediction is not None:
            graded = task.grade(record, response, tuple(required_fields))
        reason, detail = _reason(task, record, prediction, graded)
        reasoning = task.reasoning(record, graded, response)
        items.append(GradedItem(record, prediction, graded, reason, detail, reasoning))
    return items


def _reason(
    task: Task, record: Record, prediction: Prediction | None, graded: Grade | None
) -> tuple[str, str]:
    """Why an item is wrong, and the detail; both "" where it is right."""
    if graded is None or prediction is None:
        return "missing_prediction", ""
    if graded.correct:
        return "", ""
    response = prediction.response or ""
    if prediction.response is not None and not response.strip():
        return "empty_response", ""
    return task.reason(record, graded, response, bool(prediction.truncated))


def breakdown_row(item: GradedItem) -> dict[str, Any]:
    """The item's row of breakdown.csv: flags as 0 or 1, unknown lengths and levels blank."""
    record, prediction = item.record, item.prediction
    return {
        "id": record.id,
        "correct": int(item.correct),
        "level": "" if record.level is None else record.level,
        "type": record.type,
        "report": record.report,
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
        "report": record.report,
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
