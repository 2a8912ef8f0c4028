"""The embedded data set: deterministic, disjoint, with right golds and slips where they are meant to be."""

import copy
import json
import math
import random
import re
from collections import Counter, defaultdict

import pytest

from utils.data.readers import sample
from utils.frame.files import UserError
from utils.grading.execute import execute, execution_match
from utils.grading.program import parse_steps, tokenize_program

# Where a swapped operand cannot show: two amounts that happen to be equal, a ratio of 1.
DEGENERATE = {"total", "ratio", "share", "gap_of_changes", "change_of_total", "percent_change_of_total"}


@pytest.fixture(scope="module")
def splits():
    return sample.generate(0)


@pytest.fixture(scope="module")
def rows(splits):
    return [row for members in splits.values() for row in members]


def value(program: str, row: dict):
    """What a program executes to by the official rules, which round to 5 places."""
    result = execute(tokenize_program(program), row["table"])
    assert result.error is None, (row["id"], program, result.error)
    return result.value


def answer_from_words(question: str, table: list[list[str]]):
    """The answer, read from the question's words and computed in plain arithmetic."""
    years = table[0][1:]
    amounts = {line[0]: dict(zip(years, map(int, line[1:]), strict=True)) for line in table[1:]}
    asked = re.findall(r"\d{4}", question)
    words = question.replace("?", "").split()
    items = [word for word in words if word in amounts]
    row = [amounts[items[0]][year] for year in (asked or years)]
    other = [amounts[items[1]][year] for year in asked] if len(items) > 1 else None
    patterns = {
        r"what was the change in the total of": lambda: sum(v[1] - v[0] for v in (row, other)),
        r"what was the percent change in the total of": lambda: (row[1] + other[1]) / (row[0] + other[0]) - 1,
        r"what was the change in": lambda: row[1] - row[0],
        r"what was the percent change in": lambda: row[1] / row[0] - 1,
        r"what was the gap between the change": lambda: (row[1] - row[0]) - (other[1] - other[0]),
        r"what was the gap between the percent": lambda: row[1] / row[0] - other[1] / other[0],
        r"what was the total of": lambda: row[0] + other[0],
        r"what was the ratio of": lambda: row[0] / other[0],
        r"what share of": lambda: row[0] / (row[0] + other[0]),
        # "was cash greater in 2004 than in 2003": the later year comes first.
        r"was \w+ greater": lambda: "yes" if row[0] > row[1] else "no",
        r"what was the highest": lambda: max(row),
        r"what was the lowest": lambda: min(row),
        r"what was the overall": lambda: sum(row),
        r"what was the (average|mean)": lambda: sum(row) / len(row),
    }
    return next(compute() for pattern, compute in patterns.items() if re.match(pattern, question))


def test_generation_is_deterministic(splits):
    again = sample.generate(0)
    assert json.dumps(again) == json.dumps(splits)
    assert sample.generate(1)["test"] != splits["test"]


def test_split_sizes_and_unique_ids(splits, rows):
    assert {name: len(members) for name, members in splits.items()} == {
        "train": 2000,
        "dev": 200,
        "test": 500,
    }
    assert len({row["id"] for row in rows}) == len(rows)


def test_no_report_occurs_twice(splits):
    """Neither by name nor by content, within a split or between splits; a report's questions differ."""
    owner, questions = {}, defaultdict(set)
    for split, members in splits.items():
        for row in members:
            content = json.dumps([row["pre_text"], row["table"]])
            assert owner.setdefault(content, (split, row["filename"])) == (split, row["filename"])
            assert row["qa"]["question"] not in questions[content]
            questions[content].add(row["qa"]["question"])
    assert len(owner) == 2700 / sample.QUESTIONS_PER_REPORT


def test_all_levels_and_families_occur_in_every_split(splits):
    for split, members in splits.items():
        families = Counter(row["qa"]["family"] for row in members)
        assert set(families) == set(sample.FAMILIES), split
        levels = Counter(sample.FAMILIES[row["qa"]["family"]][0] for row in members)
        share = {level: count / len(members) for level, count in levels.items()}
        assert share == pytest.approx(sample.LEVEL_WEIGHTS, abs=0.09), split


def test_levels_are_the_number_of_steps_up_to_four(rows):
    for row in rows:
        steps = len(parse_steps(tokenize_program(row["qa"]["program"])))
        assert sample.FAMILIES[row["qa"]["family"]][0] == min(steps, sample.MAX_LEVEL), row["id"]


def test_gold_answers_are_what_the_question_asks(rows):
    """Against arithmetic on the words of the question, which knows nothing of programs or families."""
    for row in rows:
        wanted, found = answer_from_words(row["qa"]["question"], row["table"]), row["qa"]["exe_ans"]
        if isinstance(wanted, str):
            assert found == wanted, row["id"]
        else:
            assert math.isclose(found, wanted, abs_tol=1e-5), row["id"]


def test_gold_programs_execute_to_the_gold_answers(rows):
    for row in rows:
        result = execute(tokenize_program(row["qa"]["program"]), row["table"])
        assert execution_match(result, row["qa"]["exe_ans"]), row["id"]


def test_evidence_restates_cells_of_the_table(rows):
    for row in rows:
        years = row["table"][0][1:]
        cells = {
            f"{line[0]} {year} {cell}"
            for line in row["table"][1:]
            for year, cell in zip(years, line[1:], strict=True)
        }
        assert set(row["qa"]["evidence"]) <= cells | {line[0] for line in row["table"]}, row["id"]


def test_slips_occur_in_training_demonstrations_alone(splits):
    for split in ("dev", "test"):
        assert all(row["qa"]["demonstration"] == row["qa"]["program"] for row in splits[split])
    slipped = {
        row["qa"]["family"] for row in splits["train"] if row["qa"]["demonstration"] != row["qa"]["program"]
    }
    assert slipped == {family for family, rate in sample.ANNOTATOR_SLIPS.items() if rate > 0}


def test_slip_rates_are_as_documented(splits):
    """Within four standard deviations of a binomial."""
    counts, slips = Counter(), Counter()
    for row in splits["train"]:
        counts[row["qa"]["family"]] += 1
        slips[row["qa"]["family"]] += row["qa"]["demonstration"] != row["qa"]["program"]
    for family, count in counts.items():
        rate = sample.ANNOTATOR_SLIPS.get(family, 0.0)
        tolerance = 4 * math.sqrt(rate * (1 - rate) / count)
        assert abs(slips[family] / count - rate) <= tolerance, family


def test_slipped_demonstrations_execute_to_another_value(splits):
    """A slip must be wrong, or there would be nothing to correct.

    The exceptions: amounts of two line items, or of two totals, that happen to be equal or to change equally.
    """
    exceptions = 0
    for row in splits["train"]:
        if row["qa"]["demonstration"] == row["qa"]["program"]:
            continue
        if value(row["qa"]["demonstration"], row) == value(row["qa"]["program"], row):
            exceptions += 1
            assert row["qa"]["family"] in DEGENERATE, row["id"]
            cells = [int(text.split()[-1]) for text in row["qa"]["evidence"]]
            if len(cells) == 2:
                assert cells[0] == cells[1], row["id"]
            elif row["qa"]["family"] == "gap_of_changes":
                assert cells[1] - cells[0] == cells[3] - cells[2], row["id"]
            else:
                assert cells[0] + cells[2] == cells[1] + cells[3], row["id"]
    assert exceptions < 0.02 * len(splits["train"])


@pytest.mark.parametrize("family", sample.FAMILIES)
def test_every_familys_slip_is_wrong(family):
    """On the same draws, with slips certain: valid programs of another value, gold and question unmoved."""
    wrong = 0
    for seed in range(40):
        questions = []
        for rate in (0.0, 1.0):
            rng = random.Random(seed)
            table, years = sample.draw_table(rng)
            questions.append(sample.draw_question(table, years, rng, {family: rate}, family))
        right, slipped = questions
        assert (right.text, right.program) == (slipped.text, slipped.program)
        assert right.demonstration == right.program and slipped.demonstration != slipped.program
        row = {"id": family, "table": sample.grid(table, years)}
        wrong += value(slipped.demonstration, row) != value(slipped.program, row)
    assert wrong >= 39 if family in DEGENERATE else wrong == 40


def test_ensure_writes_the_splits_once_and_guards_them(tmp_path, splits):
    sample.READER.ensure(tmp_path)
    files = sorted(tmp_path.iterdir())
    assert [path.name for path in files] == ["dev.json", "test.json", "train.json"]
    assert json.loads((tmp_path / "test.json").read_text()) == splits["test"]
    before = [path.stat().st_mtime_ns for path in files]
    sample.READER.ensure(tmp_path)
    assert [path.stat().st_mtime_ns for path in files] == before
    changed = copy.deepcopy(splits["dev"])
    changed[7]["qa"]["program"] = "add(1, 2)"
    (tmp_path / "dev.json").write_text(json.dumps(changed))
    with pytest.raises(UserError, match=r"dev\.json is not the embedded data set of seed 0"):
        sample.READER.ensure(tmp_path)
