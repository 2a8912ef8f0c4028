"""The evidence of a FinQA question, found from its gold program where the annotators' is missing.

A program's operands stand somewhere in the report. The places where they stand are what an annotator would
have marked in most cases, and only in most: a number can stand in several (docs/contexts.md has the figures).
"""

import math
import re
from dataclasses import dataclass

from utils.data.reading import RawRow
from utils.data.rendering import related_words
from utils.grading.program import (
    TABLE_OPERATIONS,
    is_reference,
    plain_number,
    program_steps,
    tokenize_program,
)

_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?|\.\d+")
# How an operand may be written in the report, the likeliest first: as it is, as percent or fraction, in
# another unit (thousands, millions, billions).
_FORMS = ((1.0,), (100.0, 0.01), (1e3, 1e-3, 1e6, 1e-6, 1e9, 1e-9))
# Written as a number by some annotators where the language has a constant: const_100 as 100.
_UNITS = frozenset(10.0**power for power in range(10))


@dataclass(frozen=True)
class _Part:
    """A text or a table row of the report, with the numbers in it (absolute values)."""

    place: str
    name: str  # of a table row; "" of a text
    numbers: frozenset[float]
    words: frozenset[str]


def derived_places(row: RawRow) -> tuple[str, ...]:
    """The texts and table rows that hold the gold program's operands, named as ``gold_inds`` names them.

    Of the parts of the report, the one that holds most of the operands is taken first; among equals a table
    row, then the part that shares most words with the question, then the first. Returns () where an operand
    stands nowhere or the program has none: with a gap in its evidence a question could not be answered.
    """
    parts = _parts(row)
    by_name = {part.name: part for part in parts if part.name}  # the last of one name, as in execution
    chosen, wanted = set(), []
    for operation, *operands in program_steps(tokenize_program(row.program)):
        if operation in TABLE_OPERATIONS:
            if operands[0] not in by_name:
                return ()
            chosen.add(by_name[operands[0]].place)
            continue
        for operand in operands:
            if is_reference(operand) or operand.startswith("const_"):
                continue
            holders = _holders(operand, parts)
            if holders:
                wanted.append(holders)
            elif plain_number(operand) not in _UNITS:
                return ()
    asked = related_words(row.question)
    wanted = [places for places in wanted if not places & chosen]
    while wanted:
        best = max(
            (part for part in parts if any(part.place in places for places in wanted)),
            key=lambda part: (
                sum(part.place in places for places in wanted),
                part.place != "table_0",  # the header is shown in any case, and its years are not evidence
                part.place.startswith("table"),
                len(part.words & asked),
            ),
        )
        chosen.add(best.place)
        wanted = [places for places in wanted if best.place not in places]
    return tuple(part.place for part in parts if part.place in chosen)


def _parts(row: RawRow) -> list[_Part]:
    parts = [
        _Part(f"table_{i}", cells[0] if cells else "", _numbers(" ".join(cells[1:])), _words_of(cells))
        for i, cells in enumerate(row.table)
    ]
    texts = enumerate((*row.pre_text, *row.post_text))
    return parts + [_Part(f"text_{i}", "", _numbers(text), related_words(text)) for i, text in texts]


def _words_of(cells: tuple[str, ...]) -> frozenset[str]:
    return related_words(" ".join(cells))


def _numbers(text: str) -> frozenset[float]:
    return frozenset(float(found.rstrip(",").replace(",", "")) for found in _NUMBER.findall(text))


def _holders(operand: str, parts: list[_Part]) -> set[str]:
    """The places that hold an operand in the likeliest form that stands anywhere."""
    number = plain_number(operand.rstrip("%"))
    if number is None:
        return set()
    for factors in _FORMS:
        sizes = [abs(number) * factor for factor in factors]
        found = {
            part.place
            for part in parts
            if any(math.isclose(size, held, rel_tol=1e-9) for size in sizes for held in part.numbers)
        }
        if found:
            return found
    return set()
