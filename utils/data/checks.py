"""What the data check looks for beyond single rows, and its summary.

Two rows are the same item when question and context agree after lower-casing and collapsing white space.
Overlap is counted at two grains: the report page a FinQA question was written for (its texts and table) and
the whole report it is from (``ETR/2009``).
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable
from itertools import combinations
from pathlib import Path

from utils.data.reading import FILE, Problem, RawRow
from utils.data.records import Record
from utils.data.sources import RawSplit
from utils.documents.text import plural
from utils.frame.files import shown

_INTEGER = re.compile(r"-?\d{1,3}(,\d{3})+|-?\d+")
_DECIMAL = re.compile(r"-?[\d,]*\.\d+|-?\d+(\.\d+)?e-?\d+")
_FRACTION = re.compile(r"-?\\[dt]?frac\s*\{?\d+\}?\s*\{?\d+\}?|-?\d+/\d+")
_SPECIAL = r"<\|[^<>|\s]{1,40}\|>|</?s>|<(?:bos|eos|pad|unk|mask)>|\[/?INST\]"
_LINE = re.compile(r"line (\d+)")
SHOWN = 5  # errors of a split that are named on the screen
_INTERVAL = re.compile(r"[(\[].*,.*[)\]]", re.DOTALL)


def item_key(row: RawRow) -> str:
    """A hash of question and context; equal for two rows that are the same item."""
    parts = [row.question, *row.pre_text, *row.post_text, *(cell for cells in row.table for cell in cells)]
    text = "\0".join(" ".join(part.lower().split()) for part in parts)
    return hashlib.sha256(text.encode()).hexdigest()


def special_token_problems(rows: list[RawRow], special: Collection[str] = ()) -> list[Problem]:
    """A warning for every row whose question or context holds the text of a special token.

    Tokenised, it is the token itself: a turn may end in the middle of a question. Looked for are the tokens
    that ``special`` names, and what such tokens look like in most vocabularies.
    """
    names = sorted(filter(None, special), key=len, reverse=True)
    pattern = re.compile("|".join([*map(re.escape, names), _SPECIAL]))
    problems = []
    for row in rows:
        cells = (cell for line in row.table for cell in line)
        texts = (row.question, *row.pre_text, *row.post_text, *cells)
        if found := next(filter(None, map(pattern.search, texts)), None):
            message = f"the text {found[0]!r} is a special token of a vocabulary, and is read as that token"
            problems.append(row.problem("warning", "special_token", message))
    return problems


def duplicate_problems(splits: dict[str, RawSplit]) -> list[Problem]:
    """A warning for every row that repeats an earlier one, of its split or of a later split (a leak)."""
    problems = []
    keys = {split: _first_by(raw.rows, item_key) for split, raw in splits.items()}
    names = list(splits)
    for position, split in enumerate(names):
        for row in splits[split].rows:
            key = item_key(row)
            first = keys[split][key]
            if first is not row:
                message = f"the same question and context as {first.id} at {first.place}"
                problems.append(row.problem("warning", "duplicate_in_split", message))
            for other in names[position + 1 :]:
                if key in keys[other]:
                    twin = keys[other][key]
                    message = f"the same question and context as {twin.id} of {other} ({twin.source})"
                    problems.append(row.problem("warning", "duplicate_across_splits", message))
    return problems


def page_problems(splits: dict[str, RawSplit]) -> list[Problem]:
    """A warning at the first row of every report page that a later split has too."""
    problems = []
    for a, b in combinations(splits, 2):
        pages = {row.report for row in splits[b].rows if row.report}
        for page, row in _first_by(splits[a].rows, lambda row: row.report).items():
            if page in pages:
                message = f"report page {page} is also in {b}"
                problems.append(row.problem("warning", "page_across_splits", message))
    return problems


def solution_problems(rows: list[RawRow], fault: Callable[[RawRow], str]) -> list[Problem]:
    """A warning for every row whose worked solution does not end at its answer, as ``fault`` finds."""
    found = [(row, fault(row)) for row in rows]
    return [row.problem("warning", "solution_not_answer", message) for row, message in found if message]


def problem_lines(raw: RawSplit, across: list[Problem], folder: Path) -> list[str]:
    """The problems of a split for the screen, those ``across`` rows included: how many there are, its first
    errors one by one and its warnings by code, each with the file below ``folder`` and the line as an editor
    counts.
    """
    rows = {(row.file, row.place, row.id) for row in raw.rows}
    problems = raw.problems + [each for each in across if (each.file, each.place, each.id) in rows]
    errors = [problem for problem in problems if problem.severity == "error"]
    by_code = defaultdict(list)
    for problem in problems:
        if problem.severity == "warning":
            by_code[problem.code].append(problem)
    lines = [f"{plural(len(errors), 'error')}, {plural(len(problems) - len(errors), 'warning')}"]
    lines += [f"error: {_where(each, folder)}: {each.message} ({each.code})" for each in errors[:SHOWN]]
    lines += [f"error: … {plural(len(errors) - SHOWN, 'more error')}"] * (len(errors) > SHOWN)
    for code, found in by_code.items():
        first = f"first {_where(found[0], folder)}: {found[0].message}"
        lines.append(f"warning: {code} in {plural(len(found), 'row')}, {first}")
    return lines


def _where(problem: Problem, folder: Path) -> str:
    line, path = _LINE.search(problem.place), shown(folder / problem.file)
    if line:
        return f"{path}:{line[1]}"
    return path if problem.place == FILE else f"{path} {problem.place}"


def overlap(splits: dict[str, RawSplit]) -> dict[str, dict[str, int]]:
    """Pages and reports that two splits share, e.g. ``{"train/val": {"pages": 0, "reports": 85}}``."""
    counts = {}
    for a, b in combinations(splits, 2):
        pages = [{row.report for row in splits[s].rows if row.report} for s in (a, b)]
        reports = [{page.rpartition("/")[0] for page in found if "/" in page} for found in pages]
        counts[f"{a}/{b}"] = {"pages": len(pages[0] & pages[1]), "reports": len(reports[0] & reports[1])}
    return counts


def verdict(splits: dict[str, RawSplit], threshold: float) -> str:
    """Why the data cannot be used, in one line; "" where it can.

    The share of rows with an error may not exceed ``threshold``. An error of a file as a whole (truncated,
    empty, not an array) always fails: nobody knows how many rows are missing.
    """
    problems = [problem for raw in splits.values() for problem in raw.problems if problem.severity == "error"]
    for problem in problems:
        if problem.place == FILE:
            return f"{problem.file}: {problem.message}"
    bad = sum(len(raw.lost) for raw in splits.values())
    items = sum(raw.items for raw in splits.values())
    if not items:
        return "no rows at all"
    if bad / items > threshold:
        first = problems[0]
        return (
            f"{bad} of {items} rows have an error ({bad / items:.1%}, at most {threshold:.1%} allowed); "
            f"first: {first.file} {first.place}: {first.message}"
        )
    return ""


def summarize(splits: dict[str, RawSplit], records: dict[str, list[Record]], across: list[Problem]) -> dict:
    """Counts, lengths, levels, types, answer types, quirks and problems of every split.

    ``records`` are those of the usable rows, ``across`` the problems between rows and between splits.
    """
    codes = Counter(problem.code for problem in across)
    names = ("duplicate_in_split", "duplicate_across_splits", "page_across_splits")
    summary: dict = {
        "splits": {},
        "overlap": overlap(splits),
        "repeated": {name: codes[name] for name in names},
    }
    for split, raw in splits.items():
        rows = raw.rows
        found = Counter((p.severity, p.code) for p in raw.problems)
        summary["splits"][split] = {
            "rows": raw.items,
            "usable": raw.items - len(raw.lost),
            "levels": _counts("none" if row.level is None else row.level for row in rows),
            "types": _counts(row.type for row in rows if row.type),
            "answer_types": _counts(answer_type(row.answer) for row in rows),
            "quirks": _counts(trait for row in rows for trait in row.traits),
            "wrong_demonstrations": sum(row.demonstration != row.program for row in rows),
            "question_words": _distribution(len(row.question.split()) for row in rows),
            "input_words": _distribution(len(record.input_text.split()) for record in records[split]),
            "input_characters": _distribution(len(record.input_text) for record in records[split]),
            "target_words": _distribution(len(record.target_text.split()) for record in records[split]),
            "target_characters": _distribution(len(record.target_text) for record in records[split]),
            "table_rows": _distribution(len(row.table) for row in rows if row.table),
            "errors": {code: n for (severity, code), n in sorted(found.items()) if severity == "error"},
            "warnings": {code: n for (severity, code), n in sorted(found.items()) if severity == "warning"},
        }
    return summary


def examples(records: dict[str, list[Record]], per_level: int = 1) -> list[dict]:
    """The first records of every level of every split, as JSON objects with the split added."""
    chosen = []
    for split, found in records.items():
        by_level = defaultdict(list)
        for record in found:
            by_level[record.level or 0].append(record)
        for level in sorted(by_level):
            chosen += [{"split": split} | record.to_json() for record in by_level[level][:per_level]]
    return chosen


def answer_type(answer: str) -> str:
    """The form of a gold answer: integer, decimal, yes/no, fraction, tuple or interval, text, expression."""
    if answer in ("yes", "no"):
        return "yes/no"
    for name, pattern in (
        ("integer", _INTEGER),
        ("decimal", _DECIMAL),
        ("fraction", _FRACTION),
        ("tuple or interval", _INTERVAL),
    ):
        if pattern.fullmatch(answer):
            return name
    return "text" if answer.startswith("\\text") else "expression"


def report_markdown(dataset: str, summary: dict, failed: str, quirks: bool = True) -> str:
    """The summary as a page to read, ``quirks`` of the published files included."""
    splits = summary["splits"]
    lines = [f"# Data check: {dataset}", "", f"Verdict: {'FAILED: ' + failed if failed else 'passed'}", ""]
    counts = [[key, *(s[key] for s in splits.values())] for key in ("rows", "usable", "wrong_demonstrations")]
    shown = [
        [key.replace("_", " "), *row] for key, *row in counts if key != "wrong_demonstrations" or any(row)
    ]
    lines += _table(["", *splits], shown)
    for title, key in (
        ("Problems: errors (row left out)", "errors"),
        ("Problems: warnings (row used)", "warnings"),
        ("Levels", "levels"),
        ("Types", "types"),
        ("Answer types", "answer_types"),
        ("Known quirks of the published files", "quirks"),
    ):
        names = sorted({name for s in splits.values() for name in s[key]}, key=lambda name: (len(name), name))
        if names and (quirks or key != "quirks"):
            rows = [[name, *(s[key].get(name, 0) for s in splits.values())] for name in names]
            lines += [f"## {title}", "", *_table(["", *splits], rows)]
    lines += ["## Lengths (median / 95 % / longest)", ""]
    keys = [key for key in next(iter(splits.values())) if key.endswith(("_words", "_characters", "_rows"))]
    shown = [[key.replace("_", " "), *(_short(s[key]) for s in splits.values())] for key in keys]
    lines += _table(["", *splits], shown)
    lines += ["## Repeated rows and pages", ""]
    lines += _table(["", "count"], [[key.replace("_", " "), n] for key, n in summary["repeated"].items()])
    rows = [[pair, n["pages"], n["reports"]] for pair, n in summary["overlap"].items()]
    lines += ["## Report overlap between splits", "", *_table(["", "pages", "reports"], rows)]
    return "\n".join(lines)


def _first_by(rows: list[RawRow], key: Callable[[RawRow], str]) -> dict[str, RawRow]:
    first: dict[str, RawRow] = {}
    for row in rows:
        first.setdefault(key(row), row)
    return first


def _counts(values: Iterable) -> dict[str, int]:
    return {str(name): n for name, n in Counter(values).items()}


def _distribution(values: Iterable[int]) -> dict[str, float] | None:
    ordered = sorted(values)
    if not ordered:
        return None
    last = len(ordered) - 1
    return {
        "min": ordered[0],
        "median": ordered[last // 2],
        "mean": round(sum(ordered) / len(ordered), 2),
        "p95": ordered[round(0.95 * last)],
        "max": ordered[-1],
    }


def _short(distribution: dict | None) -> str:
    return "{median} / {p95} / {max}".format(**distribution) if distribution else "none"


def _line(cells: list) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _table(header: list, rows: list[list]) -> list[str]:
    return [_line(header), _line(["---", *["---:"] * (len(header) - 1)]), *map(_line, rows), ""]
