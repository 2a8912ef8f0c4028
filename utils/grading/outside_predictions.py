"""Predictions made elsewhere: FinQA's official list of programs, or JSONL of responses.

Two forms, told apart by the first character of the file:

* a JSON array (``[``) of ``{"id": …, "predicted": ["subtract(", "5829", "5735", ")", "EOF"]}``, FinQA's own;
* JSONL, one ``{"id": …, "response": "…"}`` or ``{"index": …, "response": "…"}`` a line, where ``index`` is
  the item's row in the split's file, counted from 0.

Either entry may stand in either form of file; other keys are ignored. Every fault is one line that names the
file and the line, or the entry of an array; nothing is skipped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.data.reading import describe
from utils.data.records import Record
from utils.frame.files import UserError, json_fault, jsonl_values, shown

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Prediction:
    """One answer to be graded: either a response in the model's words or a program in official tokens.

    ``token_count`` and ``truncated`` are known only of responses generated here.
    """

    response: str | None = None
    program_tokens: tuple[str, ...] | None = None
    token_count: int | None = None
    truncated: bool | None = None


def read_predictions(path: Path, records: Sequence[Record]) -> dict[str, Prediction]:
    """Predictions by item id; items that the file says nothing about have no entry.

    Args:
        path: the predictions.
        records: all gold items of the split, in file order.

    Raises:
        UserError: naming file and place, where the file cannot be read, an entry has neither form, an id or
            index is unknown, or an item is predicted twice.
    """
    known = {record.id for record in records}
    id_of_row = {_row(record): record.id for record in records}
    found: dict[str, Prediction] = {}
    place_of: dict[str, str] = {}
    for kind, number, entry in _entries(path):
        place = f"{kind} {number}"
        where = f"{shown(path)}:{number if kind == 'line' else f' {place}'}"
        if not isinstance(entry, dict):
            raise UserError(f"{where}: expected an object with 'id', found {describe(entry)}")
        item = _item_id(entry, where, known, id_of_row)
        if item in place_of:
            raise UserError(f"{where}: item '{item}' is already predicted in {place_of[item]}")
        place_of[item] = place
        found[item] = _prediction(entry, where)
    if not found:
        raise UserError(f"{shown(path)}:1: holds no predictions; give one object per item")
    return found


def _row(record: Record) -> int | None:
    """The row of the split's file that a record was read from, as its source tells."""
    number = record.source.rpartition("#")[2]
    return int(number) if number.isdecimal() else None


def _item_id(entry: dict, where: str, known: set[str], id_of_row: dict[int | None, str]) -> str:
    item, index = entry.get("id"), entry.get("index")
    if isinstance(item, int) and not isinstance(item, bool):
        item = str(item)
    if item is not None and not (isinstance(item, str) and item):
        raise UserError(f"{where}: 'id' must be text, found {describe(item)}")
    if item is not None and item not in known:
        raise UserError(
            f"{where}: unknown id {_short(item)}: no such item in this split ({_examples(known)})"
        )
    if index is not None:
        if not isinstance(index, int) or isinstance(index, bool):
            raise UserError(f"{where}: 'index' must be a whole number, found {describe(index)}")
        if index not in id_of_row:
            raise UserError(f"{where}: unknown index {index}: this split has rows 0 to {_last(id_of_row)}")
        if item not in (None, id_of_row[index]):
            raise UserError(
                f"{where}: index {index} is item '{id_of_row[index]}', but 'id' says {_short(item)}"
            )
        item = id_of_row[index]
    if item is None:
        raise UserError(f"{where}: neither 'id' nor 'index' says which item this is")
    return item


def _prediction(entry: dict, where: str) -> Prediction:
    given = [key for key in ("predicted", "response") if key in entry]
    if len(given) != 1:
        both = "both 'predicted' and 'response'" if given else "neither 'predicted' nor 'response'"
        raise UserError(f"{where}: has {both}; give one of them")
    value = entry[given[0]]
    if given == ["response"]:
        if not isinstance(value, str):
            raise UserError(
                f"{where}: 'response' must be text, found {describe(value)}; leave missing items out"
            )
        return Prediction(response=_SURROGATE.sub("\ufffd", value))
    if not isinstance(value, list) or not all(isinstance(token, str) for token in value):
        raise UserError(
            f"{where}: 'predicted' must be a list of program tokens as text, found {describe(value)}"
        )
    return Prediction(program_tokens=tuple(_SURROGATE.sub("\ufffd", token) for token in value))


def _entries(path: Path) -> Iterator[tuple[str, int, Any]]:
    """What an entry is counted by ("line", in an array "entry"), its number from 1, and its value."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except IsADirectoryError:
        raise UserError(f"{shown(path)}: is a folder; --predictions takes a file") from None
    except OSError as error:
        raise UserError(f"{shown(path)}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{shown(path)}:{line}: not UTF-8 text (byte {error.start})") from None
    if not text.lstrip().startswith("["):
        for number, value in jsonl_values(path):
            yield "line", number, value
        return
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{shown(path)}:{getattr(error, 'lineno', 1)}: {json_fault(error)}") from None
    for number, value in enumerate(values, start=1):
        yield "entry", number, value


def _short(text: str | None) -> str:
    return repr(text if text is None or len(text) <= 60 else text[:59] + "…")


def _examples(known: set[str]) -> str:
    return f"ids look like {_short(min(known))}" if known else "it is empty"


def _last(id_of_row: dict[int | None, str]) -> int:
    return max((row for row in id_of_row if row is not None), default=-1)
