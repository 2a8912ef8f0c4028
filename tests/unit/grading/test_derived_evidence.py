"""Evidence found by the gold program: numbers in their forms, rows by name; none where one is missing."""

from dataclasses import replace
from pathlib import Path

import pytest

from utils.data.readers.finqa import READER
from utils.data.reading import RawRow
from utils.grading.derived_evidence import derived_places

ROW = RawRow(
    file="train.json",
    row=0,
    place="row 0",
    id="a-1",
    question="what was the change in cash ?",
    answer="2",
    pre_text=(
        "in 2010 the rate was 5.9% ( 5.9 % ) .",
        "3,100 people work here .",
        "debt was $ 1.2 million .",
    ),
    post_text=("cash was 5 .",),
    table=(
        ("( in millions )", "2010", "2009"),
        ("cash", "5", "3"),
        ("inventory", "5", "$ -77 ( 77 )"),
        ("total", "10", "8"),
    ),
)


@pytest.mark.parametrize(
    ("program", "places"),
    [
        ("subtract(5, 3)", ("table_1",)),  # the row that holds both, not the text or row that holds one
        ("subtract(5, -77)", ("table_2",)),
        ("divide(5, const_100)", ("table_1",)),  # of three places, the row that the question is about
        ("divide(3100, 3)", ("table_1", "text_1")),
        ("multiply(5.9%, 8)", ("table_3", "text_0")),
        ("multiply(0.059, 8)", ("table_3", "text_0")),
        ("add(1200000, 8)", ("table_3", "text_2")),
        ("table_sum(inventory, none)", ("table_2",)),
        ("table_sum(total, none), add(#0, 3)", ("table_1", "table_3")),
        ("table_sum(profit, none)", ()),
        ("subtract(5, 4), divide(#0, 4)", ()),
        ("subtract(5, 1000000)", ("table_1",)),  # a unit, which other annotators write const_1000000
        ("divide(const_1, const_2)", ()),
        ("no program", ()),
    ],
)
def test_places_hold_every_operand(program, places):
    assert derived_places(replace(ROW, program=program)) == places


def test_most_derived_places_are_the_annotators(shared_data):
    rows, _ = READER.read(Path(shared_data, "finqa", "dataset", "dev.json"), "val")
    both = [(row, found) for row in rows if row.gold_places and (found := derived_places(row))]
    assert len(both) >= 0.98 * sum(bool(row.gold_places) for row in rows)
    same = sum(set(row.gold_places) - {"table_0"} == set(found) for row, found in both)
    assert same >= 0.75 * len(both)
    marked = sum(len(set(row.gold_places) & set(found)) for row, found in both)
    assert marked >= 0.95 * sum(len(found) for _, found in both)
