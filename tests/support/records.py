"""Eight records of the embedded data set's form, with tables, for stages and measures on tiny models."""

import json

from utils.data.records import Record


def record(number: int, question: str = "the change ?") -> Record:
    a, b = 10 + number, 30 + 2 * number
    program = f"subtract({b}, {a})"
    return Record(
        id=f"train-{number}",
        dataset="sample",
        question=question,
        input_text=f"cash 2001 {a} 2002 {b}\n{question}",
        target_text=json.dumps({"program": program}),
        target_answer=str(b - a),
        target_program=program,
        level=1,
        table=[["", "2001", "2002"], ["cash", str(a), str(b)]],
    )


RECORDS = [record(number, "the change ?" * (1 + number % 3)) for number in range(8)]


def records_of_levels(levels, types=None) -> list[Record]:
    """Records of the given levels, and types if any."""
    return [
        Record(str(row), "math", "q", "q", "t", "1", level=level, type=types[row] if types else "")
        for row, level in enumerate(levels)
    ]
