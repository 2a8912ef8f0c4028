"""What is asked of every form of data set before it is records: `Reader`, which each file of ``readers/``
fills in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from utils.data.layouts import parts_of, read_items
from utils.data.reading import (
    Notes,
    Problem,
    RawItem,
    RawRow,
    describe,
    usable_rows,
)
from utils.data.records import Record
from utils.data.rendering import Cut, approximate_tokens
from utils.frame.typed_settings import suggestion

SPLITS = ("train", "val", "test")


class Reader:
    """How the rows of a form of data set are read, and made into records. A file of ``readers/`` holds a
    subclass, and an instance of it as ``READER``.

    Only `name` has no default. By default a raw file is JSONL, a row in it the same mapping that a data set
    of the user's own has (docs/extending.md), and an input the question with the instruction after it.

    name: what data sets of this form are called, before any ":". files: the names below the data root that
    the raw file of a split has in the published layout (others: utils/data/layouts.py); without a file, val
    is cut from train, always where it has no names. markers: keys of which every raw row has one. row_keys:
    the keys of a row of the user's own; none where there cannot be such a set. has_context: an input is more
    than its question, and can be cut. quirks_known: quirks of the published files are worth a table in the
    data report.
    """

    name: ClassVar[str]
    files: ClassVar[Mapping[str, tuple[str, ...]]] = {split: (f"{split}.jsonl",) for split in SPLITS}
    markers: ClassVar[tuple[str, ...]] = ("question",)
    row_keys: ClassVar[tuple[str, ...]] = ("id", "question", "answer", "level", "type", "solution")
    has_context: ClassVar[bool] = False
    quirks_known: ClassVar[bool] = True

    def ensure(self, root: Path) -> None:
        """Make the raw files where they are generated and missing."""

    def recognises(self, row: Mapping[str, Any]) -> bool:
        """Whether a raw row is of this form."""
        return False

    def required_keys(self, config: Any) -> tuple[str, ...]:
        """The further keys, dotted, that a raw row must have under this dataset tier."""
        return tuple(config.required_fields)

    def read(
        self, path: Path, split: str, required: tuple[str, ...] = ()
    ) -> tuple[list[RawRow], list[Problem]]:
        """The usable rows of the raw file of a split, in file order, and all problems found in it.

        Rows without an id of their own are called ``<split>-<row>``, counting from 0.
        """
        items, problems = read_items(self.parts(path), self.markers)
        return self.own_rows(items, problems, split, required), problems

    def parts(self, path: Path) -> list[Path]:
        """All files of a split, whose first (or only) one is ``path``."""
        return parts_of(path)

    def own_rows(
        self, items: list[RawItem], problems: list[Problem], split: str, required: tuple[str, ...]
    ) -> list[RawRow]:
        """The usable rows among mappings with `row_keys`; what is wrong goes into ``problems``."""
        return usable_rows(items, problems, split, self._own_row, set(self.row_keys), required, self._own_id)

    def _own_id(self, row: dict, notes: Notes) -> None:
        if isinstance(row.get("id"), int) and not isinstance(row["id"], bool):
            notes.id = str(row["id"])
        elif row.get("id") is not None:
            notes.id = notes.text(row, "id") or notes.id

    def _own_row(self, item: RawItem, notes: Notes) -> RawRow | None:
        row = item.value
        if unknown := [key for key in row if key not in self.row_keys]:
            hint = suggestion(str(unknown[0]), self.row_keys)
            notes.error("unknown_key", f"'{unknown[0]}' is no key of a row in {self.name}'s form{hint}")
        level, kind = row.get("level"), row.get("type") or ""
        if level is not None and (isinstance(level, bool) or not isinstance(level, int)):
            notes.error("wrong_type", f"'level' must be a whole number, found {describe(level)}")
        if not isinstance(kind, str):
            notes.error("wrong_type", f"'type' must be text, found {describe(kind)}")
        return None if notes.failed else self.row(item, notes, level, kind)

    def row(self, item: RawItem, notes: Notes, level: int | None, kind: str) -> RawRow | None:
        """The row of a mapping with `row_keys`; None where it has an error, which goes into ``notes``."""
        row = item.value
        question, solution = notes.text(row, "question"), row.get("solution") or ""
        answer = row.get("answer")
        if isinstance(answer, int | float) and not isinstance(answer, bool):
            answer = str(int(answer) if isinstance(answer, float) and answer.is_integer() else answer)
        else:
            answer = notes.text(row, "answer").strip()
        if not isinstance(solution, str):
            notes.error("wrong_type", f"'solution' must be text, found {describe(solution)}")
        if notes.failed:
            return None
        answer, solution = self.closed(answer, solution.strip(), notes)
        return item.as_row(
            notes.id, question=question.strip(), answer=answer, solution=solution, level=level, type=kind
        )

    def closed(self, answer: str, solution: str, notes: Notes) -> tuple[str, str]:
        """Answer and solution, the latter with its closing line; notes an error where they disagree."""
        return answer, solution or answer

    def record(
        self, row: RawRow, config: Any, count_tokens: Callable[[str], int] = approximate_tokens
    ) -> tuple[Record, Cut | None]:
        """The record of a row under the dataset tier, and what its input leaves out (None: nothing)."""
        text, cut = self.input_text(row, config, count_tokens)
        record = Record(
            id=row.id,
            dataset=config.label,
            question=row.question,
            input_text=text,
            target_text=self.target_text(row, config),
            target_answer=row.answer,
            target_program=row.program,
            level=row.level,
            type=row.type,
            report=row.report,
            table=[list(cells) for cells in row.table],
            source=row.source,
            evidence=("derived" if row.places_derived else "annotated") if config.context == "gold" else "",
        )
        return record, cut

    def input_text(
        self, row: RawRow, config: Any, count_tokens: Callable[[str], int]
    ) -> tuple[str, Cut | None]:
        """What the model sees: the question, then the instruction, as is customary for GSM8K and MATH."""
        text = f"{row.question}\n{config.instruction}" if config.instruction else row.question
        limit = config.max_input_tokens
        if limit is not None and (count := count_tokens(text)) > limit:
            return text, Cut(0, 0, count, count, 0, still_over=True)
        return text, None

    def target_text(self, row: RawRow, config: Any) -> str:
        """What supervised fine-tuning teaches."""
        return row.solution
