"""Reader for FinQA (Chen et al. 2021, arXiv 2109.00122): one JSON array (or JSONL, parquet) of questions per
split, in the published schema or as the hub's flat rows.

Quirks of the published files that are accepted as they are: ``pre_text``/``post_text`` whose sentences are
joined in a single string; ``exe_ans`` that is "yes" or "no"; ids that end in ``-xN``; optional ``qa`` keys
that come and go. ``qa.answer`` is never used: it shows percent where ``exe_ans`` is a fraction, and in some
rows contradicts it. The embedded data set has the same schema with two more optional ``qa`` keys:
``demonstration`` (the annotator's program, which may be wrong) and ``evidence`` (a list of facts).
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from utils.data.layouts import read_items
from utils.data.reader import Reader
from utils.data.reading import Notes, Problem, RawItem, RawRow, describe, usable_rows
from utils.data.rendering import render_report

_STEP = re.compile(  # the ten operations of the paper, Table 1
    r"(?:^|,\s*)(?:add|subtract|multiply|divide|exp|greater|table_(?:max|min|sum|average))\("
)
_OPTIONAL = ("answer", "gold_inds", "steps", "program_re", "explanation")
_DECIMAL = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?", re.ASCII)
_UNUSUAL_ID = re.compile(r"-x\d+$")
_USED = {"id", "filename", "pre_text", "post_text", "table", "question", "program", "exe_ans"}
_CONTEXT = ("pre_text", "post_text", "table")


class FinqaReader(Reader):
    """FinQA. ``level`` is the number of program steps, at most ``max_level``."""

    name = "finqa"
    files = {
        "train": ("dataset/train.json", "train.json"),
        "val": ("dataset/dev.json", "dev.json"),
        "test": ("dataset/test.json", "test.json"),
    }
    row_keys = (
        *("id", "question", "answer", "level", "type"),
        *("program", "demonstration", "evidence", *_CONTEXT, "report"),
    )
    markers = ("qa", "final_result")
    has_context = True
    max_level: float = math.inf

    def recognises(self, row) -> bool:
        qa = row.get("qa")
        return any(key in row for key in self.markers) and not (
            isinstance(qa, dict) and "demonstration" in qa
        )

    def required_keys(self, config) -> tuple[str, ...]:
        keys = super().required_keys(config)
        if "evidence" not in config.response_fields:
            return keys
        return (*keys, "evidence" if config.reader else "qa.evidence")  # else empty text would be taught

    def read(self, path, split, required=()):
        items, problems = read_items(self.parts(path), self.markers)
        items = [replace(item, value=nested(item.value)) for item in items]
        return self.checked(items, problems, required), problems

    def checked(
        self, items: list[RawItem], problems: list[Problem], required: tuple[str, ...]
    ) -> list[RawRow]:
        """The usable rows among items in the published schema; what is wrong goes into ``problems``."""
        check = partial(_check, max_level=self.max_level)
        return usable_rows(items, problems, "", check, _USED, required, _identify)

    def row(self, item, notes, level, kind) -> RawRow | None:
        """The row of the user's own, checked as one of FinQA's."""
        row = item.value
        context = {key: [] if row.get(key) is None else row[key] for key in _CONTEXT}
        gold = {key: row[key] for key in ("question", "program", "demonstration", "evidence") if key in row}
        gold |= {"exe_ans": row.get("answer"), "family": row.get("type")}
        whole = {"id": notes.id, "filename": row.get("report"), **context, "qa": gold}
        found = _check(replace(item, value=whole), notes, self.max_level)
        if found is None:
            return None
        return replace(found, level=found.level if level is None else level, traits=())

    def input_text(self, row, config, count_tokens):
        """The instruction, the report or a part of it, and the question, which comes last."""
        return render_report(row, config, count_tokens)

    def target_text(self, row, config) -> str:
        """The JSON object: evidence, the annotator's program and the answer, in the order asked for."""
        values = {"evidence": " ; ".join(row.evidence), "program": row.demonstration, "answer": row.answer}
        return json.dumps({name: values[name] for name in config.response_fields}, ensure_ascii=False)


READER = FinqaReader()


def count_steps(program: str) -> int:
    """The number of operations in a program, e.g. 2 for "subtract(5, 3), divide(#0, 3)"."""
    return len(_STEP.findall(program))


def nested(row: Any) -> Any:
    """A flat row of the hub, ``question, answer, final_result, program_re, gold_inds`` beside the report, in
    the published schema; any other value as it is.

    ``final_result`` is ``exe_ans`` as text. ``program_re`` is the program as one expression, which becomes
    steps. ``gold_inds`` has texts without their places, which cannot be used.
    """
    if not isinstance(row, dict) or "qa" in row or not {"final_result", "program_re"} <= set(row):
        return row
    qa = {key: row[key] for key in ("question", "answer") if key in row}
    answer, program = row["final_result"], row["program_re"]
    if isinstance(answer, str) and _DECIMAL.fullmatch(answer.strip()):
        answer = float(answer)
    qa |= {"program": in_steps(program) if isinstance(program, str) else program, "exe_ans": answer}
    context = {key: row[key] for key in ("id", "filename", *_CONTEXT) if key in row}
    return {"qa": qa, **context}


def in_steps(expression: str) -> str:
    """A program in steps from its nested form, "divide(subtract(5, 3), 3)": "subtract(5, 3), divide(#0, 3)".

    Equal parts are one step. What is no such expression, or is nested too deeply, is returned as it is.
    """
    steps: list[str] = []

    def step(text: str) -> str:
        """The reference to what an argument computes, or the argument."""
        name, _, inside = text.partition("(")
        if not _STEP.match(text) or not text.endswith(")"):
            return text
        done = f"{name}({', '.join(step(part.strip()) for part in _arguments(inside[:-1]))})"
        if done not in steps:
            steps.append(done)
        return f"#{steps.index(done)}"

    try:
        found = step(expression.strip())
    except RecursionError:
        return expression
    return ", ".join(steps) if found.startswith("#") else expression


def _arguments(text: str) -> list[str]:
    """What commas outside brackets separate."""
    parts, depth = [""], 0
    for char in text:
        depth += (char == "(") - (char == ")")
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return parts


def _check(item: RawItem, notes: Notes, max_level: float) -> RawRow | None:
    row = item.value
    pre_text = _sentences(row, "pre_text", notes)
    post_text = _sentences(row, "post_text", notes)
    table = _table(row, notes)
    qa = row.get("qa")
    if not isinstance(qa, dict):
        notes.error(
            "missing_key" if qa is None else "wrong_type", f"'qa' must be an object, found {describe(qa)}"
        )
        return None
    question = notes.text(qa, "question", "qa.question")
    program = notes.text(qa, "program", "qa.program")
    answer = _answer(qa, notes)
    steps = count_steps(program)
    if program and not steps:
        notes.error("unparsable_gold", f"'qa.program' holds no operation: {program[:80]!r}")
    demonstration = notes.text(qa, "demonstration", "qa.demonstration") if "demonstration" in qa else program
    evidence = qa.get("evidence") or []
    if not isinstance(evidence, list) or not all(isinstance(fact, str) for fact in evidence):
        notes.error("wrong_type", f"'qa.evidence' must be a list of texts, found {describe(evidence)}")
        evidence = []
    if notes.failed:
        return None
    filename, family, places = row.get("filename"), qa.get("family"), qa.get("gold_inds")
    return item.as_row(
        notes.id,
        question=question,
        answer=answer,
        program=program,
        demonstration=demonstration,
        evidence=tuple(evidence),
        pre_text=pre_text,
        post_text=post_text,
        table=table,
        report=filename if isinstance(filename, str) and filename else notes.id.rpartition("-")[0],
        gold_places=tuple(places) if isinstance(places, dict) else (),
        level=min(steps, max_level),
        type=family if isinstance(family, str) else "",
        traits=tuple(_traits(row, qa, notes.id)),
    )


def _traits(row: dict, qa: dict, id_: str) -> Iterator[str]:
    """The quirks of the published files that a row shows."""
    for key in ("pre_text", "post_text"):
        if isinstance(row[key], list) and len(row[key]) == 1:
            yield f"{key} in a single string"
    if _UNUSUAL_ID.search(id_):
        yield "id ending in -xN"
    if qa["exe_ans"] in ("yes", "no"):
        yield "yes/no answer"
    elif "%" in str(qa.get("answer")):
        yield "qa.answer in percent, exe_ans a fraction"
    for key in _OPTIONAL:
        if key not in qa:
            yield f"no qa.{key}"


def _identify(row: dict, notes: Notes) -> None:
    value = row.get("id")
    if isinstance(value, int) and not isinstance(value, bool):
        notes.id = str(value)
        notes.warning("number_for_text", f"'id' is the number {value}, read as text")
    else:
        notes.id = notes.text(row, "id")


def _sentences(row: dict, key: str, notes: Notes) -> tuple[str, ...]:
    """``pre_text`` or ``post_text`` as sentences, exactly as listed (``gold_inds`` counts them)."""
    value = row.get(key)
    if value is None:
        notes.error("missing_key", f"'{key}' is missing")
        return ()
    if isinstance(value, str):
        notes.warning("text_for_list", f"'{key}' is a text, read as a list of one")
        return (value,)
    if not isinstance(value, list):
        notes.error("wrong_type", f"'{key}' must be a list of texts, found {describe(value)}")
        return ()
    return tuple(_as_text(part, f"{key}.{index}", notes) for index, part in enumerate(value))


def _table(row: dict, notes: Notes) -> tuple[tuple[str, ...], ...]:
    value = row.get("table")
    if value is None:
        notes.error("missing_key", "'table' is missing")
        return ()
    if not isinstance(value, list) or not all(isinstance(cells, list) for cells in value):
        notes.error("wrong_type", "'table' must be a list of rows, each a list of cells")
        return ()
    table = tuple(
        tuple(_as_text(cell, f"table.{r}.{c}", notes) for c, cell in enumerate(cells))
        for r, cells in enumerate(value)
    )
    if not any(cell.strip() for cells in table for cell in cells):
        notes.warning("empty_table", "'table' is empty")
    elif len({len(cells) for cells in table}) > 1:
        notes.warning("ragged_table", "the rows of 'table' differ in length")
    return table


def _as_text(value: Any, name: str, notes: Notes) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        notes.warning("number_for_text", f"'{name}' is the number {value}, read as text")
        return str(value)
    if value is None:
        notes.warning("number_for_text", f"'{name}' is null, read as empty")
        return ""
    notes.error("wrong_type", f"'{name}' must be text, found {describe(value)}")
    return ""


def _answer(qa: dict, notes: Notes) -> str:
    """``exe_ans`` as text: "yes", "no", or the shortest decimal that reads back as the same number."""
    value = qa.get("exe_ans")
    if value in ("yes", "no"):
        return value
    found = f"must be a finite number, yes or no, found {describe(value)}"
    if value is None or value == "":
        notes.error("missing_key", "'qa.exe_ans' is missing")
    elif isinstance(value, bool) or not isinstance(value, str | int | float):
        notes.error("wrong_type", f"'qa.exe_ans' {found}")
    else:
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            notes.error("unparsable_gold", f"'qa.exe_ans' {found}")
            return ""
        if isinstance(value, str):
            notes.warning("text_for_number", f"'qa.exe_ans' is the text {value[:40]!r}, read as a number")
        return str(int(number)) if number.is_integer() and abs(number) < 1e15 else repr(number)
    return ""
