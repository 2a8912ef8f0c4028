"""Rows of the user's own data set, by one function of a file of theirs (docs/extending.md).

``read(path, split)`` yields a mapping per row, with what the data set's form needs:

    question, answer                every form; the answer as text or number
    solution                        gsm8k, math: worked solution to teach; the closing line with the answer
                                    (``#### 18``, ``\\boxed{18}``) is added where it has none
    program                         finqa: the gold program, which must give the answer; optional: table (rows
                                    of cells), pre_text, post_text, evidence, demonstration, report (the page
                                    that a row is from: rows of one page are never split over train and val)
    id, level, type                 optional; level is a whole number (finqa: the steps, where not given)

Any other key is an error, for a typing slip would lose a field in silence. A row that cannot be used becomes
a problem of the data report; a function that fails stops the stage.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from utils.data.reader import Reader
from utils.data.reading import FILE, Problem, RawItem, RawRow, describe
from utils.frame.files import UserError, shown
from utils.frame.user_code import Function, load_function, read_source

FUNCTION = "read"


def read_own(
    path: Path, split: str, code: Path, reader: Reader, required: tuple[str, ...] = ()
) -> tuple[list[RawRow], list[Problem]]:
    """The usable rows that the function in ``code`` finds in the raw file of a split, and all problems.

    Raises UserError naming file and line where the function fails, or yields what is no mapping.
    """
    problems: list[Problem] = []
    rows = enumerate(_rows(path, split, code))
    items = [RawItem(path.name, number, f"row {number}", row) for number, row in rows]
    if not items:
        message = f"{shown(code)} yields no rows of it"
        return [], [Problem(path.name, FILE, "", "error", "no_rows", message)]
    return reader.own_rows(items, problems, split, required), problems


def reader_function(code: Path) -> Function:
    """The function of the file ``code``. Raises UserError where it has none that can be called."""
    return load_function(read_source(code), shown(code), FUNCTION, ("path", "split"))


def _rows(path: Path, split: str, code: Path) -> Iterable[dict]:
    where, read = shown(code), reader_function(code)
    found = read(path, split)
    if isinstance(found, Mapping | str | bytes) or not isinstance(found, Iterable):
        raise UserError(f"{where}: {FUNCTION}() must yield a mapping per row, found {describe(found)}")
    rows = iter(found)
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except (Exception, SystemExit) as error:  # a generator runs, and fails, only here
            raise read.fault(error) from None
        if not isinstance(row, Mapping):
            raise UserError(f"{where}: {FUNCTION}() must yield a mapping per row, found {describe(row)}")
        yield dict(row)
