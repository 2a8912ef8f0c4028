"""Read raw files row by row, and keep reading past damage.

A reader never raises for what a file holds. It returns the rows it could use and a list of ``Problem``,
one for everything it could not use (severity error: the row is left out) or had to interpret
(severity warning: the row is used). A row that is whole survives damage to its neighbours.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

MAX_ROW_CHARS = 2_000_000  # the longest row of the three data sets has some 30,000 characters
# Bounds the search for whole items in a damaged array: characters parsed in vain and a surcharge per try.
RESYNC_BUDGET = 200_000_000
RESYNC_SURCHARGE = 10_000
FILE = "file"  # place of a problem that concerns the file as a whole

_SPACE = re.compile(r"[ \t\r\n]*")
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Problem:
    """Something wrong in a raw file. ``place`` is "row 12 (line 80)" (rows of a JSON array from 0, lines from
    1), "line 13" (JSONL), "row 12" (parquet), or "file"; ``id`` is "" where it is unknown."""

    file: str
    place: str
    id: str
    severity: Literal["error", "warning"]
    code: str
    message: str

    def to_json(self) -> dict:
        """The problem as a JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class RawRow:
    """One usable row of a raw file, checked and in the same form for every data set.

    ``row`` counts from 0 over all rows of the file, damaged ones included. ``answer`` is the gold answer
    as text. ``context`` are the texts before and after the table, ``report`` the page they come from
    (FinQA). ``solution`` is the worked solution (GSM8K, MATH). ``demonstration`` is the program an
    annotator wrote and ``evidence`` the facts it rests on, where the raw file states them.
    ``gold_places`` names the texts and table rows that hold the evidence ("text_3", "table_1"); it serves
    to report what was lost, never to choose what to show, except where ``context: gold`` asks for it.
    ``places_derived``: they are not the annotators' but found by the gold program. ``traits`` are known
    quirks of the published files that the row shows; they are counted in the data report.
    """

    file: str
    row: int
    place: str
    id: str
    question: str
    answer: str
    program: str = ""
    demonstration: str = ""
    solution: str = ""
    evidence: tuple[str, ...] = ()
    pre_text: tuple[str, ...] = ()
    post_text: tuple[str, ...] = ()
    table: tuple[tuple[str, ...], ...] = ()
    report: str = ""
    gold_places: tuple[str, ...] = ()
    places_derived: bool = False
    level: int | None = None
    type: str = ""
    traits: tuple[str, ...] = ()

    @property
    def source(self) -> str:
        """Where the row stands in the raw data, e.g. ``train.json#12``."""
        return f"{self.file}#{self.row}"

    def problem(self, severity: Literal["error", "warning"], code: str, message: str) -> Problem:
        """A problem at this row's place."""
        return Problem(self.file, self.place, self.id, severity, code, message)


@dataclass(frozen=True)
class RawItem:
    """One parsed but unchecked value of a raw file."""

    file: str
    row: int
    place: str
    value: Any = None

    def as_row(self, id: str, **fields: Any) -> RawRow:
        """The usable row that was made of it."""
        return RawRow(self.file, self.row, self.place, id, **fields)


@dataclass
class Notes:
    """Collects the problems of one row. ``failed`` turns true with the first error."""

    item: RawItem
    problems: list[Problem]
    id: str = ""
    failed: bool = field(default=False)

    def error(self, code: str, message: str) -> None:
        """Note a problem that makes the row unusable."""
        self.failed = True
        self.problems.append(Problem(self.item.file, self.item.place, self.id, "error", code, message))

    def warning(self, code: str, message: str) -> None:
        """Note something that was interpreted; the row stays."""
        self.problems.append(Problem(self.item.file, self.item.place, self.id, "warning", code, message))

    def text(self, row: dict, key: str, label: str = "") -> str:
        """The non-blank text under ``key``; notes an error and returns "" where there is none."""
        label = label or key
        value = row.get(key)
        if value is None:
            self.error("missing_key", f"'{label}' is missing")
        elif not isinstance(value, str):
            self.error("wrong_type", f"'{label}' must be text, found {describe(value)}")
        elif not value.strip():
            self.error("empty_value", f"'{label}' is empty")
        else:
            return value
        return ""


def read_json_items(path: Path, markers: Sequence[str]) -> tuple[list[RawItem], list[Problem]]:
    """The items of a JSON array of objects, parsed one by one. After a syntax error reading goes on at the
    next object that parses and holds one of ``markers``, so a damaged array still yields its whole items.
    """
    text, items, problems, fault = _opened(path, path.name)
    if not text:
        return items, problems
    decoder = json.JSONDecoder()
    budget = RESYNC_BUDGET
    position, row, closed, line, seen = _skip_space(text, 0), 0, False, 1, 0

    def holds(value: Any) -> bool:
        return isinstance(value, dict) and not value.keys().isdisjoint(markers)

    def resync(start: int) -> int:
        nonlocal budget
        while budget > 0 and (start := text.find("{", start)) >= 0:
            try:
                value, end = decoder.raw_decode(text, start)
                if holds(value):
                    return start
            except json.JSONDecodeError as error:
                end = error.pos
            except (ValueError, RecursionError):
                end = start
            budget -= RESYNC_SURCHARGE + end - start
            start += 1
        return len(text)

    if text[position] == "[":
        position += 1
    else:
        fault("not_an_array", f"expected an array of objects ('['), found {text[position : position + 1]!r}")
        position = resync(position)
        closed = True  # without an opening bracket a closing one is not missed
    while (position := _skip_space(text, position)) < len(text):
        if text[position] == "]":
            closed = True
            rest = _skip_space(text, position + 1)
            if rest < len(text):
                fault("text_after_end", f"text after the end of the array at {_line_column(text, rest)}")
            position = resync(rest)
            continue
        line, seen = line + text.count("\n", seen, position), position
        item = RawItem(path.name, row, f"row {row} (line {line})")
        row += 1
        try:
            value, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            fault("bad_json", _syntax_message(text, position, error), item.place)
            position = resync(position + 1)
            continue
        if isinstance(value, list) and any(map(holds, value)):
            # A stray bracket has swallowed the items after it: they are read one by one all the same.
            message = f"a list stands where an object belongs, at {_line_column(text, position)}"
            fault("not_an_object", message, item.place)
            position = resync(position + 1)
            continue
        _admit(items, problems, replace(item, value=value), text[position:end])
        position = _skip_space(text, end)
        if position < len(text) and text[position] == ",":
            position += 1
        elif position < len(text) and text[position] != "]":
            fault("bad_json", f"expected ',' or ']' after {item.place} at {_line_column(text, position)}")
            position = resync(position)
    if budget <= 0:
        fault("gave_up", "damaged in so many places that the search for whole rows was given up")
    if not closed:
        fault("truncated_file", f"the array is not closed after row {row - 1}: the file is truncated")
    elif row == 0:
        fault("no_rows", "the file holds no rows")
    return items, problems


def read_jsonl_items(path: Path) -> tuple[list[RawItem], list[Problem]]:
    """The values of a JSONL file, one per non-blank line."""
    text, items, problems, _ = _opened(path, path.name)
    row = 0
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            _admit(items, problems, RawItem(path.name, row, f"line {number}"), line, read=True)
            row += 1
    return items, problems


def read_object(path: Path, file: str, row: int) -> tuple[list[RawItem], list[Problem]]:
    """The single object of a one-problem-per-file data set, as a list of at most one item."""
    place = f"row {row}"
    text, items, problems, _ = _opened(path, file)
    problems = [replace(problem, place=place) for problem in problems]  # the file is no more than a row
    if text:
        _admit(items, problems, RawItem(file, row, place), text, read=True)
    return items, problems


def check_scalars(notes: Notes, used: set[str]) -> None:
    """Note NaN, infinite numbers and text that is not Unicode anywhere in the item.

    Non-finite numbers outside the keys in ``used`` (of the item, or of its ``qa``) are warnings: they
    occur in optional fields that a table tool has filled in.
    """
    for path, value in walk(notes.item.value):
        if isinstance(value, float) and not math.isfinite(value):
            note = notes.error if used & set(path[:2]) else notes.warning
            note("not_finite", f"'{_join(path)}' is {value}, not a finite number")
        elif isinstance(value, str) and not value.isascii() and _SURROGATE.search(value):
            notes.error("not_unicode", f"'{_join(path)}' holds half of a surrogate pair, not Unicode text")


def walk(value: Any) -> Iterator[tuple[tuple, Any]]:
    """All scalars (and object keys) in a JSON value with their paths, without recursion."""
    stack: list[tuple[tuple, Any]] = [((), value)]
    while stack:
        path, value = stack.pop()
        if isinstance(value, dict):
            for key, item in value.items():
                yield (*path, key), key
                stack.append(((*path, key), item))
        elif isinstance(value, list):
            stack.extend(((*path, index), item) for index, item in enumerate(value))
        else:
            yield path, value


def check_required(notes: Notes, row: dict, required: tuple[str, ...]) -> None:
    """Note the dotted keys of ``required`` ("qa.gold_inds") that ``row`` lacks or leaves empty."""
    for name in required:
        value: Any = row
        for key in name.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value is None or value in ("", [], {}):
            notes.error("missing_key", f"'{name}' is missing or empty, and the configuration requires it")


def usable_rows(
    items: list[RawItem],
    problems: list[Problem],
    split: str,
    check: Callable[[RawItem, Notes], RawRow | None],
    used: set[str],
    required: tuple[str, ...],
    identify: Callable[[dict, Notes], None] = lambda row, notes: None,
) -> list[RawRow]:
    """The rows that ``check`` makes of ``items`` without an error, each id once; what it notes goes into
    ``problems``.

    ``identify`` gives ``notes`` the id of a row that has its own; others are called ``<split>-<row>``, or
    nothing where ``split`` is "". ``used``, ``required``: as in `check_scalars` and `check_required`.
    """
    rows = []
    for item in items:
        notes = Notes(item, problems, id=f"{split}-{item.row}" if split else "")
        if not isinstance(item.value, dict):
            notes.error("not_an_object", f"expected an object, found {describe(item.value)}")
            continue
        identify(item.value, notes)
        check_scalars(notes, used)
        check_required(notes, item.value, required)
        row = check(item, notes)
        if row is not None and not notes.failed:
            rows.append(row)
    return drop_duplicate_ids(rows, problems)


def drop_duplicate_ids(rows: list[RawRow], problems: list[Problem]) -> list[RawRow]:
    """The rows with the first use of each id; later uses become errors."""
    first: dict[str, RawRow] = {}
    for row in rows:
        if row.id in first:
            message = f"id '{row.id}' is already used at {first[row.id].place}"
            problems.append(row.problem("error", "duplicate_id", message))
        else:
            first[row.id] = row
    return list(first.values())


def describe(value: Any) -> str:
    """A JSON value's type in JSON's words, with the value where it is short."""
    names = {dict: "an object", list: "a list", str: "text", bool: "a truth value", type(None): "null"}
    name = names.get(type(value), "a number")
    shown = repr(value) if isinstance(value, str | int | float | bool) else ""
    return f"{name} {shown}" if 0 < len(shown) <= 40 else name


def _admit(
    items: list[RawItem], problems: list[Problem], item: RawItem, source: str, read: bool = False
) -> None:
    """Append the item unless its source is over-long or not UTF-8; with ``read`` its value is still to be
    read from there."""
    try:
        if read and len(source) <= MAX_ROW_CHARS:
            item = replace(item, value=json.loads(source))
    except (ValueError, RecursionError) as error:
        fault = ("bad_json", _syntax_message(source, 0, error))
    else:
        if not (fault := _fault_of(source)):
            items.append(item)
            return
    problems.append(Problem(item.file, item.place, _id_of(item.value), "error", *fault))


def _fault_of(source: str) -> tuple[str, str] | None:
    """What makes the text of a row unusable, as a problem's code and message."""
    if len(source) > MAX_ROW_CHARS:
        found, limit = len(source) / 1e6, MAX_ROW_CHARS / 1e6
        return "too_long", f"{found:.1f} million characters in one row (limit {limit:.0f} million)"
    if source.isascii() or not (escaped := _ESCAPED_BYTE.search(source)):
        return None
    byte, near = ord(escaped[0]) - 0xDC00, source[max(0, escaped.start() - 20) : escaped.start()]
    return "wrong_encoding", f"byte 0x{byte:02x} after {near!r} is not UTF-8; save the file as UTF-8"


def _opened(path: Path, file: str) -> tuple[str, list[RawItem], list[Problem], Callable[..., None]]:
    """The file's text ("" where it is blank), no items yet, what is wrong with the file, and a function that
    notes an error (code, message, place).

    Bytes that are not UTF-8 become lone surrogates, to be reported row by row.
    """
    problems: list[Problem] = []

    def fault(code: str, message: str, place: str = FILE) -> None:
        problems.append(Problem(file, place, "", "error", code, message))

    try:
        data = path.read_bytes()
    except OSError as error:
        fault("unreadable", f"cannot be read: {error.strerror}")
        return "", [], problems, fault
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        problems.append(Problem(file, FILE, "", "warning", "utf16", "the file is UTF-16; save it as UTF-8"))
        text = data.decode("utf-16", errors="replace")
    else:
        if data.startswith(b"\xef\xbb\xbf"):
            message = "the file starts with a byte order mark"
            problems.append(Problem(file, FILE, "", "warning", "bom", message))
        text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", errors="surrogateescape")
    if not text.strip():
        fault("empty_file", "the file is empty")
        text = ""
    return text, [], problems, fault


def _id_of(value: Any) -> str:
    found = value.get("id") if isinstance(value, dict) else None
    return found if isinstance(found, str) and not _SURROGATE.search(found) else ""


def _skip_space(text: str, position: int) -> int:
    return _SPACE.match(text, position).end()


def _line_column(text: str, position: int) -> str:
    line = text.count("\n", 0, position) + 1
    return f"line {line} column {position - text.rfind(chr(10), 0, position)}"


def _syntax_message(text: str, start: int, error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"JSON syntax error at {_line_column(text, error.pos)}: {error.msg}"
    if isinstance(error, RecursionError):
        return f"too deeply nested JSON in the item at {_line_column(text, start)}"
    return f"bad number in the item at {_line_column(text, start)}: {str(error).split(';')[0]}"


def _join(path: tuple) -> str:
    return ".".join(str(key) for key in path)
