"""Results of evaluations that were made elsewhere, item by item, as folders that a comparison reads.

Three forms (docs/comparison.md): the samples that lm-evaluation-harness logs (JSONL with ``doc_id``), the
logs of Inspect (JSON with ``samples``), and tables with ``id`` and ``correct`` (CSV, or JSONL). Nothing is
graded here: who is right is what the file says.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.comparison.paired import PolicyResult
from utils.frame.files import (
    UserError,
    jsonl_values,
    read_json,
    shown,
    write_csv,
    write_json,
    write_jsonl,
)
from utils.statistics.clusters import cluster_numbers, clustered_rate

# How a truth value is written: in tables, by Inspect's scorers, by numbers.
_RIGHT = {
    "1": True,
    "1.0": True,
    "true": True,
    "c": True,
    "0": False,
    "0.0": False,
    "false": False,
    "i": False,
}
_RIGHT |= {"n": False}  # Inspect: no answer
_TASK = re.compile(r"samples_(.+?)(?:_\d{4}-\d\d-\d\dT.*)?")
_TEXTS = ("gold", "report", "type", "question", "response")
COLUMNS = ["id", "correct", "level", "type", "report", "gold"]


def read_results(path: Path, metric: str = "") -> tuple[str, list[dict[str, Any]]]:
    """The task ("" where the file does not say) and a row per item of a file of results.

    A row has ``id``, ``correct`` (bool), ``level`` (int or None) and the texts ``gold, report, type,
    question`` and ``response``, "" where not stated.

    Args:
        metric: which measure says who is right, where there are several: a metric of lm-evaluation-harness,
            "exact_match", or with its filter "exact_match,strict-match"; a scorer of Inspect.

    Raises:
        UserError: naming file and place of what cannot be read, is neither right nor wrong, or says two
            things of one item.
    """
    kind = path.suffix.lower()
    if kind == ".csv":
        task, rows = "", list(_table(path))
    elif kind == ".jsonl":
        lines = [(f"{shown(path)}:{number}", row) for number, row in jsonl_values(path)]
        lines = [(where, _object(row, where)) for where, row in lines]
        if lines and "doc_id" in lines[0][1]:
            named = _TASK.fullmatch(path.stem)
            task, rows = named[1] if named else "", list(_harness(path, lines, metric))
        else:
            task, rows = "", [_own(row, where) for where, row in lines]
    elif kind == ".json":
        task, rows = _inspect(path, metric)
    else:
        convert = " (inspect log convert --to json makes one of it)" if kind == ".eval" else ""
        raise UserError(
            f"{shown(path)}: results are a CSV, JSONL or JSON file, found {kind or 'no ending'}{convert}"
        )
    if not rows:
        raise UserError(f"{shown(path)}: no items")
    seen: set[str] = set()
    for row in rows:
        if row["id"] in seen:
            raise UserError(
                f"{shown(path)}: item '{row['id']}' is there twice; one answer per item can be compared"
            )
        seen.add(row["id"])
    return task, rows


def write_others(
    out: Path, files: Mapping[str, Path], metric: str, own: Sequence[PolicyResult] = ()
) -> dict[str, Path]:
    """Write the results of each file into ``out/<name>`` as 10 leaves an evaluation: name -> folder.

    Beside evaluations of stage 10 (``own``), data set and split are theirs, and a row's number n, as others
    call items, is their "<split>-n". Golds are written differently elsewhere, and are not compared.

    Raises UserError as ``read_results``, and where no item is one of ``own``.
    """
    found = {}
    for name, path in files.items():
        task, rows = read_results(path, metric)
        dataset, split = task, ""
        if own:
            dataset, split = own[0].metrics["dataset"], own[0].metrics["split"]
            rows = _as_own(path, rows, own[0], split)
        clusters = cluster_numbers([row["report"] for row in rows])
        metrics = {
            "schema_version": 1,
            "policy": name,
            "dataset": dataset,
            "split": split,
            "n": len(rows),
            "missing": {"count": 0, "ids": []},
            "accuracy": clustered_rate([row["correct"] for row in rows], clusters),
            "failure_reasons": {},
        }
        found[name] = out / name
        table = [{key: row[key] for key in COLUMNS} | {"correct": int(row["correct"])} for row in rows]
        write_csv(out / name / "breakdown.csv", table, COLUMNS)
        write_jsonl(out / name / "samples" / "predictions.jsonl", rows)
        write_json(out / name / "metrics.json", metrics)
    return found


def _as_own(path: Path, rows: list[dict[str, Any]], own: PolicyResult, split: str) -> list[dict[str, Any]]:
    ids = set(own.items.index)
    if not any(row["id"] in ids for row in rows):
        rows = [row | {"id": f"{split}-{row['id']}"} for row in rows]
    if not any(row["id"] in ids for row in rows):
        raise UserError(
            f"{shown(path)}: none of its items is one of '{own.name}' (such as '{own.items.index[0]}'); ids "
            "must be those, or the numbers of their rows"
        )
    return [row | {"gold": ""} for row in rows]


# --------------------------------------------------------------------------------------------- tables


def _table(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        try:
            for row in reader:
                yield _own(row, f"{shown(path)}:{reader.line_num}")
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{shown(path)}: not a CSV file in UTF-8 ({error})") from None


def _own(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A row that states ``id`` and ``correct`` itself."""
    for key in ("id", "correct"):
        if row.get(key) in (None, ""):
            columns = ", ".join(str(key) for key in row) or "nothing"
            raise UserError(f"{where}: an item needs id and correct; '{key}' is missing (there is {columns})")
    level = str(row.get("level") or "")
    if level and not (level.isdecimal() and len(level) < 10):
        raise UserError(f"{where}: 'level' must be a whole number, found {level[:40]!r}")
    return _row(row["id"], _right(row["correct"], "correct", where), row, int(level) if level else None)


def _row(item: Any, correct: bool, texts: Mapping[str, Any], level: int | None = None) -> dict[str, Any]:
    stated = {key: texts.get(key) for key in _TEXTS}
    stated = {key: value if isinstance(value, str) else "" for key, value in stated.items()}
    return {"id": str(item), "correct": correct, "level": level} | stated


def _right(value: Any, name: str, where: str) -> bool:
    found = _RIGHT.get(str(value).strip().lower())
    if found is None:
        raise UserError(
            f"{where}: '{name}' is {str(value)[:40]!r}, neither right (1, true, C) nor wrong (0, false, I); "
            "a comparison needs one of the two"
        )
    return found


def _object(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected an object, found {type(row).__name__}")
    return row


# ------------------------------------------------------------------------------- lm-evaluation-harness


def _harness(
    path: Path, lines: Sequence[tuple[str, dict[str, Any]]], metric: str
) -> Iterator[dict[str, Any]]:
    """The samples of one task: a line per item and filter, each metric under its own name."""
    wanted, _, chosen = metric.partition(",")
    filters = list(dict.fromkeys(str(row.get("filter", "none")) for _, row in lines))
    if not chosen and len(filters) > 1:
        names = " or ".join(f"{wanted or 'exact_match'},{each}" for each in filters)
        raise UserError(
            f"{shown(path)}: items were graded by several filters; choose one: --results_metric {names}"
        )
    if chosen and chosen not in filters:
        raise UserError(f"{shown(path)}: there is no filter '{chosen}', but {', '.join(filters)}")
    for where, row in lines:
        if chosen and str(row.get("filter", "none")) != chosen:
            continue
        listed = row.get("metrics") if isinstance(row.get("metrics"), list) else []
        names = [name for name in listed if isinstance(name, str) and name in row]
        if not names:  # older versions list no names
            names = [name for name in ("exact_match", "acc", "acc_norm", wanted) if name in row]
        if wanted and wanted not in row:
            raise UserError(f"{where}: there is no metric '{wanted}', but {', '.join(names) or 'none'}")
        if not wanted and len(set(names)) != 1:
            found = ", ".join(names) or "none"
            raise UserError(f"{where}: need one metric, found {found}; choose one: --results_metric NAME")
        name, doc = wanted or names[0], row.get("doc") if isinstance(row.get("doc"), dict) else {}
        response = row.get("resps")
        while isinstance(response, list) and response:
            response = response[0]
        texts = {"gold": str(row.get("target", "")), "response": response}
        texts |= {"question": doc.get("question") or doc.get("problem")}
        if "doc_id" not in row:
            raise UserError(f"{where}: there is no 'doc_id', which says which item this is")
        yield _row(row["doc_id"], _right(row[name], name, where), texts)


# --------------------------------------------------------------------------------------------- Inspect


def _inspect(path: Path, scorer: str) -> tuple[str, list[dict[str, Any]]]:
    log = read_json(path)
    samples = log.get("samples") if isinstance(log, dict) else None
    if not isinstance(samples, list) or not isinstance(log.get("eval"), dict):
        raise UserError(f"{shown(path)}: not a log of Inspect: it needs 'eval' and 'samples'")
    rows = []
    for number, sample in enumerate(samples):
        where = f"{shown(path)}: sample {number}"
        sample = _object(sample, where)
        if "id" not in sample:
            raise UserError(f"{where} has no id")
        if sample.get("epoch", 1) != 1:
            raise UserError(
                f"{where} is of epoch {sample['epoch']}; a comparison takes one answer per item: evaluate "
                "with --epochs 1"
            )
        scores = sample.get("scores") or {}
        if not scorer and len(scores) > 1:
            names = " or ".join(scores)
            raise UserError(f"{where} has several scores; choose one: --results_metric {names}")
        if scores and scorer and scorer not in scores:
            raise UserError(f"{where}: there is no score '{scorer}', but {', '.join(scores)}")
        score = scores.get(scorer) or next(iter(scores.values()), None)
        # A sample that failed has no score, and its item was not answered.
        value = score.get("value") if isinstance(score, dict) else "I"
        target, output = sample.get("target"), sample.get("output")
        texts = {"gold": target if isinstance(target, str) else str(target or "")}
        texts |= {"question": sample.get("input")}
        texts |= {"response": output.get("completion") if isinstance(output, dict) else None}
        rows.append(_row(sample["id"], _right(value, scorer or "score", where), texts))
    return str(log["eval"].get("task") or ""), rows
