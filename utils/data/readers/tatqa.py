"""Reader for TAT-QA (Zhu et al. 2021, arXiv 2105.07624): questions about a table and its paragraphs.

A row of the raw data is a context, ``table`` (``uid`` and cells), ``paragraphs`` (``order`` and ``text``) and
``questions`` (``uid, question, answer, derivation, answer_type, scale`` …); each question becomes a row, and
those of a table share a report. An answer is a text, a number or a list of texts, with a scale: "", thousand,
million, billion or percent. The gold is the JSON object of both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from utils.data.layouts import read_items
from utils.data.reader import Reader
from utils.data.reading import Notes, Problem, RawItem, RawRow, describe, usable_rows
from utils.data.rendering import render_report

SCALES = ("", "thousand", "million", "billion", "percent")
_OPERATOR = re.compile(r"(?<=[\d)%\s])[-+*/](?=[\s(\d$])")
_USED = {"uid", "question", "answer", "scale", "paragraphs", "table"}


class TatqaReader(Reader):
    """TAT-QA. ``level`` is the number of operations of the derivation, None where there is none; ``type`` is
    the answer type: span, multi-span, arithmetic or count."""

    name = "tatqa"
    files = {
        "train": ("tatqa_dataset_train.json", "dataset_raw/tatqa_dataset_train.json"),
        "val": ("tatqa_dataset_dev.json", "dataset_raw/tatqa_dataset_dev.json"),
        "test": ("tatqa_dataset_test_gold.json", "dataset_raw/tatqa_dataset_test_gold.json"),
    }
    markers = ("questions",)
    row_keys = ()
    has_context = True
    quirks_known = False

    def recognises(self, row) -> bool:
        return "questions" in row and "paragraphs" in row

    def read(self, path, split, required=()):
        items, problems = read_items(self.parts(path), self.markers)
        asked: list[RawItem] = []
        for item in items:
            first = len(asked)
            asked += [replace(each, row=first + n) for n, each in enumerate(_questions(item, problems))]
        return usable_rows(asked, problems, "", _check, _USED, required, _identify), problems

    def input_text(self, row, config, count_tokens):
        """The instruction, the table, the paragraphs and the question, which comes last."""
        return render_report(row, config, count_tokens)


READER = TatqaReader()


def _questions(item: RawItem, problems: list[Problem]) -> Iterator[RawItem]:
    """The questions of a context, each with the context's table and paragraphs."""
    row, notes = item.value, Notes(item, problems)
    table = row.get("table") if isinstance(row, dict) else None
    cells = table.get("table") if isinstance(table, dict) else None
    paragraphs = row.get("paragraphs", []) if isinstance(row, dict) else None
    questions = row.get("questions") if isinstance(row, dict) else None
    texts = paragraphs if isinstance(paragraphs, list) else [None]
    if not isinstance(cells, list) or not all(isinstance(line, list) for line in cells):
        notes.error("wrong_type", "'table.table' must be a list of rows, each a list of cells")
    elif not all(isinstance(each, dict) and isinstance(each.get("text"), str) for each in texts):
        notes.error("wrong_type", "'paragraphs' must be a list of objects with a text")
    elif not isinstance(questions, list):
        notes.error("wrong_type", f"'questions' must be a list, found {describe(questions)}")
    else:
        ordered = sorted(texts, key=lambda each: each["order"] if isinstance(each.get("order"), int) else 0)
        context = {"page": table.get("uid"), "cells": cells, "texts": [each["text"] for each in ordered]}
        for number, question in enumerate(questions):
            value = question | {"context": context} if isinstance(question, dict) else question
            yield replace(item, place=f"{item.place} question {number}", value=value)


def _identify(row: dict, notes: Notes) -> None:
    notes.id = notes.text(row, "uid")


def _check(item: RawItem, notes: Notes) -> RawRow | None:
    row, context = item.value, item.value["context"]
    question, answers = notes.text(row, "question"), _answers(row.get("answer"), notes)
    scale, derivation = row.get("scale", ""), row.get("derivation") or ""
    if scale not in SCALES:
        notes.error("unparsable_gold", f"'scale' must be one of {SCALES[1:]} or empty, found {scale!r}")
    if notes.failed:
        return None
    kind = row.get("answer_type")
    derivation = derivation if isinstance(derivation, str) and kind == "arithmetic" else ""
    page, said = context["page"], answers if len(answers) > 1 else answers[0]
    taught = ({"derivation": derivation} if derivation else {}) | {"answer": said, "scale": scale}
    return item.as_row(
        notes.id,
        question=question.strip(),
        answer=json.dumps({"answer": answers, "scale": scale}, ensure_ascii=False),
        solution=json.dumps(taught, ensure_ascii=False),
        table=tuple(tuple("" if cell is None else str(cell) for cell in line) for line in context["cells"]),
        post_text=tuple(context["texts"]),
        report=page if isinstance(page, str) else "",
        level=len(_OPERATOR.findall(derivation)) or None,
        type=kind if isinstance(kind, str) else "",
    )


def _answers(value: Any, notes: Notes) -> list[str]:
    values = value if isinstance(value, list) else [value]
    good = values and all(
        isinstance(each, str | int | float) and not isinstance(each, bool) and str(each).strip()
        for each in values
    )
    if not good:
        notes.error("unparsable_gold", f"'answer' must be text, a number or a list, found {describe(value)}")
        return []
    return [str(each).strip() for each in values]
