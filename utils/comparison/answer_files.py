"""What an evaluation's folder says of every item: who is right, answers, token values, prompts (light)."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.comparison.evaluations import SAMPLES, evaluated_in
from utils.evaluation.policy_names import evaluation_files
from utils.frame.files import UserError, as_written, read_jsonl, shown
from utils.frame.manifest import read_manifest

_FLAGS = {"0": False, "1": True}
_TEXTS = ("type", "report", "failure_reason", "failure_detail", "value")


@dataclass(frozen=True)
class Answers:
    """One policy's answers of one run.

    Attributes:
        by_id: item -> its row of predictions.jsonl, or of breakdown.csv where there is no such file.
        tokens: item -> its row of tokens.jsonl.
        lacks: which of the two files are not there.
    """

    by_id: dict[str, dict[str, Any]]
    tokens: dict[str, dict[str, Any]]
    lacks: tuple[str, ...]


def read_breakdown(path: Path) -> list[dict[str, Any]]:
    """The rows of a breakdown.csv under the names of predictions.jsonl, None or "" for what they lack.

    Early evaluations have ``id, correct, level, gold`` alone. Raises UserError naming file and line of a row
    that lacks one of these, and for a file without rows.
    """
    rows = []
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        for row in reader:
            row = {key: as_written(cell) if isinstance(cell, str) else cell for key, cell in row.items()}
            try:
                texts = {key: row.get(key) or "" for key in _TEXTS} | {"id": row["id"], "gold": row["gold"]}
                counts = {key: int(row[key]) if row.get(key) else None for key in ("level", "tokens")}
                flags = {"correct": _FLAGS[row["correct"]], "truncated": _FLAGS.get(row.get("truncated"))}
                rows.append(texts | counts | flags)
            except (KeyError, ValueError) as error:
                where = f"{path}:{reader.line_num}"
                raise UserError(
                    f"{where}: not a row of breakdown.csv ({error}); run 10_evaluate.py"
                ) from None
    if not rows:
        raise UserError(f"{path}: no items; run 10_evaluate.py again")
    return rows


def records_file(folders: Iterable[Path]) -> dict[str, Path]:
    """Name of an input -> the test records that the evaluations answered, of the first run that has them.

    Empty where none has: the page then shows no prompts.
    """
    for folder in folders:
        place = evaluated_in(folder)
        if place is None:
            continue
        run, stage = place
        for path in (read_manifest(run / stage) or {}).get("inputs", {}):
            if path.startswith("01_") and path.endswith(".jsonl") and (run / path).is_file():
                return {f"{run.name}:{Path(path).name}": run / path}
    return {}


def read_answers(folder: Path) -> Answers:
    """Answers and token values of one evaluation.

    Raises UserError naming file and row of a prediction that lacks its id or whether it is right, and of
    token values that are not one per token.
    """
    predictions, tokens = (folder / name for name in SAMPLES)
    lacks = tuple(path.name for path in (predictions, tokens) if not path.is_file())
    rows = read_jsonl(predictions) if predictions.is_file() else read_breakdown(evaluation_files(folder)[1])
    for number, row in enumerate(rows, start=1):
        if not isinstance(row.get("id"), str) or not isinstance(row.get("correct"), bool):
            where = f"{shown(predictions)}: row {number}"
            raise UserError(f"{where} needs an id and whether it is correct; run 10_evaluate.py again")
    values = read_jsonl(tokens) if tokens.is_file() else []
    for number, row in enumerate(values, start=1):
        _check_tokens(row, f"{shown(tokens)}: row {number}")
    return Answers({row["id"]: row for row in rows}, {row["id"]: row for row in values}, lacks)


def _check_tokens(row: dict[str, Any], where: str) -> None:
    pieces, values = row.get("tokens"), row.get("values")
    good = isinstance(row.get("id"), str) and isinstance(pieces, list) and isinstance(values, dict)
    good = good and all(isinstance(piece, str) for piece in pieces)
    if not good or any(not isinstance(of, list) or len(of) != len(pieces) for of in values.values()):
        raise UserError(f"{where} needs an id, tokens, and as many values of each name; run 10_evaluate.py")


def read_prompts(folders: Mapping[str, Sequence[Path]]) -> dict[str, dict[str, str]]:
    """Item -> {"prompt", "target"}: what the models saw and the gold text, of the first run that has them."""
    every = [folder for of_policy in folders.values() for folder in of_policy]
    return {
        row["id"]: {"prompt": row.get("input_text", ""), "target": row.get("target_text", "")}
        for path in records_file(every).values()
        for row in read_jsonl(path)
        if isinstance(row.get("id"), str)
    }
