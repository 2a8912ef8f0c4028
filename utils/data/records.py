"""The one record type that every stage after preparation reads."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from utils.frame.files import UserError, jsonl_values

HELD_OUT = "held_out_levels.json"  # beside train.jsonl where levels are held out: {"levels": [...]}


@dataclass(frozen=True)
class Record:
    """One problem with its gold solution, as written to ``train/val/test.jsonl``.

    ``input_text`` is what the model sees, ``target_text`` what supervised fine-tuning teaches.
    ``target_answer`` and ``target_program`` are the golds used for grading (never what is taught, where
    an annotator's demonstration differs from the gold). ``level`` is the difficulty: program steps
    (FinQA), solution steps (GSM8K) or Level 1-5 (MATH); None where the raw file states none.
    ``report`` names what several questions share, in FinQA the page of a report: they are not independent.
    ``table`` holds the cells of a FinQA table as text, header row first, for the table operations.
    ``source`` is the place in the raw file, e.g. ``train.json#12`` (row, counted from 0). ``dataset`` is
    sample, finqa, gsm8k, … (``readers/``), or for a named data set one of these and its name,
    "gsm8k:riddles".
    ``evidence`` says whose evidence an input shows that shows nothing else of its report: "annotated" or
    "derived" (found by the gold program); "" for any other input.
    """

    id: str
    dataset: str
    question: str
    input_text: str
    target_text: str
    target_answer: str
    target_program: str = ""
    level: int | None = None
    type: str = ""
    report: str = ""
    table: list[list[str]] = field(default_factory=list)
    source: str = ""
    evidence: str = ""

    def to_json(self) -> dict:
        """The record as a JSON object, keys in the order of the fields."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: dict) -> "Record":
        """Read a record from a JSON object.

        Raises ValueError naming the first key that is missing, unknown or of the wrong type.
        """
        if not isinstance(row, dict):
            raise ValueError(f"expected an object, found {type(row).__name__}")
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(row) - known):
            raise ValueError(f"unknown key '{unknown[0]}'")
        for name in _TEXT_REQUIRED:
            if name not in row:
                raise ValueError(f"key '{name}' is missing")
        for name in (*_TEXT_REQUIRED, *_TEXT_OPTIONAL):
            if not isinstance(row.get(name, ""), str):
                raise ValueError(f"'{name}' must be text, found {type(row[name]).__name__}")
        level = row.get("level")
        if level is not None and (isinstance(level, bool) or not isinstance(level, int)):
            raise ValueError(f"'level' must be an integer or null, found {level!r}")
        table = row.get("table", [])
        if not isinstance(table, list) or not all(
            isinstance(cells, list) and all(isinstance(cell, str) for cell in cells) for cells in table
        ):
            raise ValueError("'table' must be a list of rows of text cells")
        return cls(**row)


_TEXT_REQUIRED = ("id", "dataset", "question", "input_text", "target_text", "target_answer")
_TEXT_OPTIONAL = ("target_program", "type", "report", "source", "evidence")


def load_records(path: str | Path) -> list[Record]:
    """Read the records of a JSONL file written by the preparation stage.

    Raises UserError naming file and line of the first line that is not a record, and where the same id
    occurs twice (grading pairs predictions with golds by id).
    """
    records, line_of = [], {}
    for number, row in jsonl_values(path):
        try:
            record = Record.from_json(row)
        except ValueError as error:
            raise UserError(f"{path}:{number}: not a record: {error}") from None
        if record.id in line_of:
            raise UserError(f"{path}:{number}: id '{record.id}' already used in line {line_of[record.id]}")
        line_of[record.id] = number
        records.append(record)
    return records
