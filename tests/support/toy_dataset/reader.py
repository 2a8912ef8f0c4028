"""Questions about the calendar: a form of data set of the tests' own, as one reader …"""

from utils.data.reader import Reader
from utils.data.reading import read_jsonl_items, usable_rows


class CalendarReader(Reader):
    """JSONL with the keys asked, day and steps; a solution is its last line alone."""

    name = "calendar"

    def read(self, path, split, required=()):
        items, problems = read_jsonl_items(path)
        used = {"asked", "day", "steps"}
        return usable_rows(items, problems, split, _check, used, required), problems


def _check(item, notes):
    asked, day = notes.text(item.value, "asked"), notes.text(item.value, "day")
    solution, level = f"Date: {day}", item.value["steps"]
    return item.as_row(notes.id, question=asked, answer=day, solution=solution, level=level)


READER = CalendarReader()
