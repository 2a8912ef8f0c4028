"""Predictions made elsewhere: FinQA's official list of programs, or JSONL of responses.

Two forms, told apart by the first character of the file:

* a JSON array (``[``) of ``{"id": …, "predicted": ["subtract(", "5829", "5735", ")", "EOF"]}``, FinQA's own;
* JSONL, one ``{"id": …, "response": "…"}`` or ``{"index": …, "response": "…"}`` a line, where ``index`` is
  the item's row in the split's file, counted from 0.

Either entry may stand in either form of file; other keys are ignored. Every fault is one line that names the
file and the line; nothing is skipped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.data.records import Record
from utils.frame.files import UserError, shown

_SPACE = re.compile(r"[ \t\r\n]*")
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
        UserError: naming file and line, where the file cannot be read, an entry has neither form, an id or
            index is unknown, or an item is predicted twice.
    """
    known = {record.id for record in records}
    id_of_row = {_row(record): record.id for record in records}
    found: dict[str, Prediction] = {}
    place_of: dict[str, str] = {}
    for place, entry in _entries(path):
        where = f"{shown(path)}:{place}"
        if not isinstance(entry, dict):
            raise UserError(f"{where}: expected an object with 'id', found {_kind(entry)}")
        item = _item_id(entry, where, known, id_of_row)
        if item in place_of:
            raise UserError(f"{where}: item '{item}' is already predicted in line {place_of[item]}")
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
        raise UserError(f"{where}: 'id' must be text, found {_kind(item)}")
    if item is not None and item not in known:
        raise UserError(
            f"{where}: unknown id {_short(item)}: no such item in this split ({_examples(known)})"
        )
    if index is not None:
        if not isinstance(index, int) or isinstance(index, bool):
            raise UserError(f"{where}: 'index' must be a whole number, found {_kind(index)}")
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
                f"{where}: 'response' must be text, found {_kind(value)}; leave missing items out"
            )
        return Prediction(response=_SURROGATE.sub("\ufffd", value))
    if not isinstance(value, list) or not all(isinstance(token, str) for token in value):
        raise UserError(
            f"{where}: 'predicted' must be a list of program tokens as text, found {_kind(value)}"
        )
    return Prediction(program_tokens=tuple(_SURROGATE.sub("\ufffd", token) for token in value))


def _entries(path: Path) -> Iterator[tuple[str, Any]]:
    """Place and value of every entry: "12" (line, from 1), in an array "1 (entry 3)", also from 1."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except IsADirectoryError:
        raise UserError(f"{shown(path)}: is a folder; --predictions takes a file") from None
    except OSError as error:
        raise UserError(f"{shown(path)}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{shown(path)}:{line}: not UTF-8 text (byte {error.start})") from None
    start = _SPACE.match(text).end()
    return _array_entries(text, start, path) if text[start : start + 1] == "[" else _line_entries(text, path)


def _line_entries(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield str(number), _decode(line, 0, number, path)[0]


def _array_entries(text: str, start: int, path: Path) -> Iterator[tuple[str, Any]]:
    """The array's items one by one, so that a fault in one can name its line."""
    line, counted, number = 1, 0, 0
    position = _SPACE.match(text, start + 1).end()
    expected = "an object or ']'"
    while text[position : position + 1] != "]":
        line, counted = line + text.count("\n", counted, position), position
        if position >= len(text):
            raise UserError(f"{shown(path)}:{line}: the array is not closed: the file is truncated")
        if expected == "',' or ']'":
            if text[position] != ",":
                raise UserError(f"{shown(path)}:{line}: not valid JSON (expected {expected})")
            position = _SPACE.match(text, position + 1).end()
            line, counted = line + text.count("\n", counted, position), position
        value, end = _decode(text, position, line, path)
        number += 1
        yield f"{line} (entry {number})", value
        position = _SPACE.match(text, end).end()
        expected = "',' or ']'"
    rest = _SPACE.match(text, position + 1).end()
    if rest < len(text):
        line += text.count("\n", counted, rest)
        raise UserError(f"{shown(path)}:{line}: not valid JSON (text after the end of the array)")


def _decode(text: str, position: int, line: int, path: Path) -> tuple[Any, int]:
    """Decode the value that starts at ``position``; where it is a whole line, nothing may follow it."""
    try:
        if position == 0:
            return json.loads(text), len(text)
        return json.JSONDecoder().raw_decode(text, position)
    except json.JSONDecodeError as error:
        line += text.count("\n", position, error.pos)
        raise UserError(f"{shown(path)}:{line}: not valid JSON ({error.msg})") from None
    except RecursionError:
        raise UserError(f"{shown(path)}:{line}: not valid JSON (nested too deeply)") from None
    except ValueError as error:
        raise UserError(f"{shown(path)}:{line}: not valid JSON ({str(error).split(';')[0]})") from None


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:59] + "…")


def _examples(known: set[str]) -> str:
    return f"ids look like {_short(min(known))}" if known else "it is empty"


def _last(id_of_row: dict[int | None, str]) -> int:
    return max((row for row in id_of_row if row is not None), default=-1)
