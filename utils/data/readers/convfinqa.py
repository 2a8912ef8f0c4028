"""Reader for ConvFinQA (Chen et al. 2022, arXiv 2210.03849): conversations about the pages of FinQA.

A row of the raw data is a conversation (``train.json``: ``annotation`` with ``dialogue_break``,
``turn_program`` and ``exe_ans_list``, an entry per turn) or one turn of one (``train_turn.json``:
``cur_dial`` up to the turn, ``cur_program``, ``exe_ans``). Each turn becomes a row of FinQA's form, its
question the conversation so far, a line a turn. A turn that only looks up a number has that number as its
program; the gold is ``add(number, 0)``. The published test split has no answers: dev serves as test, and val
is cut from train, page by page.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from utils.data.layouts import read_items
from utils.data.readers.finqa import FinqaReader
from utils.data.reading import Notes, Problem, RawItem


class ConvfinqaReader(FinqaReader):
    """ConvFinQA. ``level`` is the number of program steps, 0 where a number is looked up; ``type`` is
    "number" or "program"."""

    name = "convfinqa"
    files = {
        "train": ("train.json", "data/train.json", "train_turn.json", "data/train_turn.json"),
        "val": (),
        "test": ("dev.json", "data/dev.json", "dev_turn.json", "data/dev_turn.json"),
    }
    markers = ("annotation",)
    row_keys = ()
    quirks_known = False

    def read(self, path, split, required=()):
        items, problems = read_items(self.parts(path), self.markers)
        turns: list[RawItem] = []
        for item in items:
            first = len(turns)
            turns += [replace(turn, row=first + n) for n, turn in enumerate(_turns(item, problems))]
        rows = self.checked(turns, problems, required)
        return [_looked_up(row) for row in rows], problems


READER = ConvfinqaReader()


def _turns(item: RawItem, problems: list[Problem]) -> Iterator[RawItem]:
    """The turns of an item in the published schema of FinQA."""
    row, notes = item.value, Notes(item, problems)
    annotation = row.get("annotation") if isinstance(row, dict) else None
    if not isinstance(annotation, dict):
        notes.error("missing_key", "'annotation' must be an object")
        return
    notes.id = row["id"] if isinstance(row.get("id"), str) else ""
    if "cur_program" in annotation:  # a turn of its own
        columns = ([annotation.get("cur_dial")], [annotation["cur_program"]], [annotation.get("exe_ans")])
        names = [notes.id]
    else:
        keys = ("dialogue_break", "turn_program", "exe_ans_list")
        columns = tuple(annotation.get(key) for key in keys)
        if not all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns):
            notes.error("wrong_type", f"{', '.join(keys)} must be lists of one length")
            return
        questions = columns[0]
        columns = ([questions[: n + 1] for n in range(len(questions))], *columns[1:])
        names = [f"{notes.id}_{n}" for n in range(len(questions))]
    for number, (name, asked, program, answer) in enumerate(zip(names, *columns, strict=True)):
        yield replace(
            item,
            place=item.place if len(names) == 1 else f"{item.place} turn {number}",
            value=_as_finqa(row, name, asked, program, answer),
        )


def _as_finqa(row: dict, name: str, asked: Any, program: Any, answer: Any) -> dict:
    listed = isinstance(asked, list) and all(isinstance(line, str) for line in asked)
    question = "\n".join(line.strip() for line in asked) if listed else asked
    qa = {"question": question, "program": program, "exe_ans": answer}
    places = row["annotation"].get("gold_ind")
    if isinstance(program, str) and program.strip():
        qa |= {"demonstration": program, "family": "program"}
        if "(" not in program:
            qa |= {"program": f"add({program.strip()}, 0)", "family": "number"}
    if isinstance(places, dict):
        qa["gold_inds"] = places
    context = {key: row[key] for key in ("filename", "pre_text", "post_text", "table") if key in row}
    return {"id": name, **context, "qa": qa}


def _looked_up(row):
    return replace(row, level=0 if row.type == "number" else row.level, traits=())
