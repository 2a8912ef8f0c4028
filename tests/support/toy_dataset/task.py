"""… and one task: what its answers look like and when they are right."""

import re
from datetime import date

from utils.grading.task import Grade, Task


def day_in(text: str) -> date | None:
    """The last day that a text states; None where it is not in the calendar."""
    found = re.findall(r"Date: (\d{4})-(\d\d)-(\d\d)", text)
    try:
        return date(*map(int, found[-1])) if found else None
    except ValueError:
        return None


class CalendarTask(Task):
    """The last ``Date: YYYY-MM-DD`` of a completion; tolerant: a day before or after."""

    name = "calendar"
    measures = {"day_accuracy": "same_day", "tolerant_accuracy": "tolerant"}

    def grade(self, record, completion, required_fields=(), program_accuracy=True):
        gold, day = date.fromisoformat(record.target_answer), day_in(completion)
        right, answer = day == gold, "" if day is None else day.isoformat()
        format_error = "" if answer else "no_date"
        return Grade(
            correct=right,
            tolerant=day is not None and abs((day - gold).days) <= 1,
            value=answer or None,
            relative_error=None,
            format_error=format_error,
            failure="" if right else format_error or "wrong_value",
            answer=answer,
            official={"same_day": right},
        )

    def gold_fault(self, row):
        return "" if day_in(row.solution) else f"no day of the calendar: {row.answer}"

    def unit_cases(self, record, required_fields, tolerance):
        day = record.target_answer
        return [
            ("last_counts", f"Date: 1999-01-01 Date: {day}", {"exact_match": 1}),
            ("bare", day, {"format_penalty": 1}),
        ]


TASK = CalendarTask()
