"""The embedded data set: small synthetic financial reports in FinQA's schema, deterministic from a seed.

Every report has a company, a table of line items by year, and a handful of questions; a question's
answer is a FinQA program over table cells. ``level`` is the number of program steps, capped at 4:

    1  one step      change, total, ratio, comparison, extreme or mean of a row
    2  two steps     percent change, mean of two years, share of a total
    3  three steps   mean of three years, gap between two changes, change of a total
    4  four or more  percent change of a total, gap between two percent changes

Gold programs (``qa.program``) are always right. ``qa.demonstration`` is what the annotator wrote, and is
what SFT teaches: in the question families of ``ANNOTATOR_SLIPS`` annotators slip with the stated
probability (operands swapped, the wrong year as the base, the last step forgotten). The slips are
planted on purpose: they give the methods that follow SFT something real to correct. They appear only in
the train split's demonstrations, never in a gold program and never in an evaluation.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from utils.data.readers.finqa import FinqaReader
from utils.frame.files import UserError, derive_seed, read_json, shown, write_json

SPLIT_SIZES = {"train": 2000, "dev": 200, "test": 500}
QUESTIONS_PER_REPORT = 4
OTHERS = ("finqa", "gsm8k", "math", "tatqa")  # data sets that this one must not pass for
MAX_LEVEL = 4
VALUES = (10, 99)  # table cells are two-digit amounts (millions)

_LINE_ITEMS = """
cash debt sales rent wages taxes equity profit income interest goodwill inventory payables assets
pensions leases royalties fees grants deposits bonds loans premiums claims freight fuel power repairs
legal audit travel software hardware licenses dividends reserves subsidies refunds warranties
advertising training insurance research marketing utilities supplies franchise brokerage
"""
LINE_ITEMS = _LINE_ITEMS.split()
_COMPANIES = """\
alder beacon cobalt delta ember falcon garnet harbor indigo juniper kestrel lumen
airways bank brands energy foods foundry health media mining motors rail textiles"""
_FIRST, _SECOND = (names.split() for names in _COMPANIES.splitlines())
FIRST_YEARS = tuple(range(2001, 2018))

Table = dict[str, dict[int, int]]  # line item -> year -> amount


@dataclass(frozen=True)
class Question:
    """One question about a report, with its gold program and the annotator's demonstration."""

    family: str
    level: int
    text: str
    evidence: tuple[str, ...]
    program: str
    demonstration: str
    answer: float | str


class Family(NamedTuple):
    """A kind of question: its wording and programs as templates, and the answer from the cells directly.

    A question is on the cells of ``rows`` line items (r, s) in ``years`` years (y1, y2, y3; 0: in all, by a
    table operation), called a, b, … row by row. slip: the program of an annotator who slips.
    """

    level: int
    weight: float  # within the level
    rows: int
    years: int
    text: str
    program: str
    slip: str
    answer: Callable[..., float | str]


_OF_TOTAL = "add({a}, {c}), add({b}, {d}), "
_GAP = "subtract({{b}}, {{a}}), divide(#0, {0}), subtract({{d}}, {{c}}), divide(#2, {1}), subtract(#1, #3)"


def _overall(word: str, operation: str, wrong: str, answer: Callable[[list[int]], float]) -> Family:
    text = f"what was the {word} {{r}} of all years ?"
    slip = f"{wrong}({{r}}, none)"
    return Family(1, 0.5, 1, 0, text, f"{operation}({{r}}, none)", slip, lambda *cells: answer(cells))


FAMILIES = {
    "change": Family(
        *(1, 2.0, 1, 2, "what was the change in {r} from {y1} to {y2} ?"),
        *("subtract({b}, {a})", "subtract({a}, {b})"),
        lambda a, b: b - a,
    ),
    "total": Family(
        *(1, 1.0, 2, 1, "what was the total of {r} and {s} in {y1} ?"),
        *("add({a}, {b})", "subtract({a}, {b})"),
        lambda a, b: a + b,
    ),
    "ratio": Family(
        *(1, 1.0, 2, 1, "what was the ratio of {r} to {s} in {y1} ?"),
        *("divide({a}, {b})", "divide({b}, {a})"),
        lambda a, b: a / b,
    ),
    "greater": Family(
        *(1, 1.0, 1, 2, "was {r} greater in {y2} than in {y1} ?"),
        *("greater({b}, {a})", "greater({a}, {b})"),
        lambda a, b: "yes" if b > a else "no",
    ),
    "highest": _overall("highest", "table_max", "table_min", max),
    "lowest": _overall("lowest", "table_min", "table_max", min),
    "overall": _overall("overall", "table_sum", "table_average", sum),
    "average": _overall("average", "table_average", "table_sum", mean),
    "percent_change": Family(
        *(2, 2.0, 1, 2, "what was the percent change in {r} from {y1} to {y2} ?"),
        *("subtract({b}, {a}), divide(#0, {a})", "subtract({b}, {a}), divide(#0, {b})"),
        lambda a, b: (b - a) / a,
    ),
    "mean_of_two": Family(
        *(2, 1.0, 1, 2, "what was the mean {r} of {y1} and {y2} ?"),
        *("add({a}, {b}), divide(#0, const_2)", "add({a}, {b})"),
        lambda a, b: (a + b) / 2,
    ),
    "share": Family(
        *(2, 1.0, 2, 1, "what share of {r} and {s} was {r} in {y1} ?"),
        *("add({a}, {b}), divide({a}, #0)", "add({a}, {b}), divide({b}, #0)"),
        lambda a, b: a / (a + b),
    ),
    "mean_of_three": Family(
        *(3, 1.0, 1, 3, "what was the mean {r} of {y1} and {y2} and {y3} ?"),
        *("add({a}, {b}), add(#0, {c}), divide(#1, const_3)", "add({a}, {b}), add(#0, {c})"),
        lambda a, b, c: (a + b + c) / 3,
    ),
    "gap_of_changes": Family(
        *(3, 1.0, 2, 2, "what was the gap between the change in {r} and in {s} from {y1} to {y2} ?"),
        "subtract({b}, {a}), subtract({d}, {c}), subtract(#0, #1)",
        "subtract({a}, {b}), subtract({c}, {d}), subtract(#0, #1)",
        lambda a, b, c, d: (b - a) - (d - c),
    ),
    "change_of_total": Family(
        *(3, 1.0, 2, 2, "what was the change in the total of {r} and {s} from {y1} to {y2} ?"),
        *(_OF_TOTAL + "subtract(#1, #0)", _OF_TOTAL + "subtract(#0, #1)"),
        lambda a, b, c, d: (b + d) - (a + c),
    ),
    "percent_change_of_total": Family(
        *(4, 1.0, 2, 2, "what was the percent change in the total of {r} and {s} from {y1} to {y2} ?"),
        *(_OF_TOTAL + "subtract(#1, #0), divide(#2, #0)", _OF_TOTAL + "subtract(#1, #0), divide(#2, #1)"),
        lambda a, b, c, d: (b + d - a - c) / (a + c),
    ),
    "gap_of_percent_changes": Family(
        *(4, 1.0, 2, 2, "what was the gap between the percent change in {r} and in {s} from {y1} to {y2} ?"),
        *(_GAP.format("{a}", "{c}"), _GAP.format("{b}", "{d}")),
        lambda a, b, c, d: (b - a) / a - (d - c) / c,
    ),
}
LEVEL_WEIGHTS = {1: 0.4, 2: 0.3, 3: 0.18, 4: 0.12}

# Probability that an annotator slips, by question family; families not named are annotated without slips.
ANNOTATOR_SLIPS = {
    "ratio": 0.65,
    "greater": 0.6,
    "percent_change": 0.68,
    "mean_of_two": 0.25,
    "share": 0.3,
    "mean_of_three": 0.68,
    "gap_of_changes": 0.65,
    "change_of_total": 0.68,
    "percent_change_of_total": 0.7,
    "gap_of_percent_changes": 0.68,
}


def draw_table(rng: random.Random) -> tuple[Table, list[int]]:
    """A table of three or four line items over three consecutive years; amounts in a row are distinct,
    so that a swapped operand always changes the answer."""
    first = rng.choice(FIRST_YEARS)
    years = [first, first + 1, first + 2]
    rows = rng.sample(LINE_ITEMS, rng.choice((3, 4)))
    amounts = range(VALUES[0], VALUES[1] + 1)
    return {row: dict(zip(years, rng.sample(amounts, 3), strict=True)) for row in rows}, years


def draw_question(
    table: Table, years: list[int], rng: random.Random, slips: dict[str, float], family: str | None = None
) -> Question:
    """A question over ``table``; ``slips`` maps a family to the probability that its demonstration slips."""
    if family is None:
        level = rng.choices(list(LEVEL_WEIGHTS), list(LEVEL_WEIGHTS.values()))[0]
        names = [name for name, each in FAMILIES.items() if each.level == level]
        family = rng.choices(names, [FAMILIES[name].weight for name in names])[0]
    kind = FAMILIES[family]
    rows = rng.sample(list(table), 2)
    if kind.years == 1:
        years = [rng.choice(years)]
    elif kind.years == 2:
        years = sorted(rng.sample(years, 2))
    cells = [(row, year, table[row][year]) for row in rows[: kind.rows] for year in years]
    amounts = [amount for *_, amount in cells]
    names = dict(zip("rs", rows, strict=True)) | dict(zip("abcd", amounts, strict=False))
    names |= {f"y{number}": year for number, year in enumerate(years, start=1)}
    answer = kind.answer(*amounts)
    slipped = rng.random() < slips.get(family, 0.0)
    return Question(
        family=family,
        level=kind.level,
        text=kind.text.format(**names),
        evidence=tuple(f"{row} {year} {amount}" for row, year, amount in cells) if kind.years else (rows[0],),
        program=kind.program.format(**names),
        demonstration=(kind.slip if slipped else kind.program).format(**names),
        answer=answer if isinstance(answer, str) else round(answer, 5),
    )


def draw_heading(rng: random.Random) -> str:
    """The report's one sentence of text: whose report it is."""
    return f"{rng.choice(_FIRST)} {rng.choice(_SECOND)} in millions"


def grid(table: Table, years: list[int]) -> list[list[str]]:
    """The table as FinQA stores it: a header row of years, then a row per line item."""
    return [["", *map(str, years)]] + [[row, *map(str, cells.values())] for row, cells in table.items()]


def report_text(rng: random.Random, table: Table) -> str:
    """A report as the "facts" rendering writes it: heading, then a line per cell."""
    facts = [f"{row} {year} {amount}" for row, cells in table.items() for year, amount in cells.items()]
    return "\n".join([draw_heading(rng), *facts])


def draw_report(rng: random.Random, slips: dict[str, float], name: str) -> list[dict]:
    """One report as ``QUESTIONS_PER_REPORT`` FinQA rows that share ``pre_text`` and ``table``."""
    table, years = draw_table(rng)
    heading, cells = draw_heading(rng), grid(table, years)
    rows, asked = [], set()
    while len(rows) < QUESTIONS_PER_REPORT:
        question = draw_question(table, years, rng, slips)
        if question.text in asked:
            continue
        asked.add(question.text)
        qa = {
            "question": question.text,
            "program": question.program,
            "exe_ans": question.answer,
            "answer": str(question.answer),
            "evidence": list(question.evidence),
            "demonstration": question.demonstration,
            "family": question.family,
        }
        rows.append(
            {
                "pre_text": [heading],
                "post_text": [],
                "table": cells,
                "filename": name,
                "id": f"{name}-{len(rows) + 1}",
                "qa": qa,
            }
        )
    return rows


def generate(seed: int = 0) -> dict[str, list[dict]]:
    """All splits. No report (company, years and table) occurs twice, within a split or across splits."""
    splits, seen = {}, set()
    for split, size in SPLIT_SIZES.items():
        rng = random.Random(derive_seed(seed, "sample", split))
        slips = ANNOTATOR_SLIPS if split == "train" else {}
        rows: list[dict] = []
        while len(rows) < size:
            report = draw_report(rng, slips, f"{split}_{len(rows) // QUESTIONS_PER_REPORT:04d}")
            key = str((report[0]["pre_text"], report[0]["table"]))
            if key not in seen:
                seen.add(key)
                rows.extend(report)
        splits[split] = rows[:size]
    return splits


class SampleReader(FinqaReader):
    """The embedded set: FinQA's schema, in files that are generated where they are missing."""

    name = "sample"
    row_keys = ()
    quirks_known = False
    max_level = MAX_LEVEL

    def recognises(self, row) -> bool:
        qa = row.get("qa")
        return isinstance(qa, dict) and "demonstration" in qa and "family" in qa

    def ensure(self, root: Path, seed: int = 0) -> None:
        """Write ``{train,dev,test}.json`` under ``root`` unless they are there already, unchanged.

        Raises UserError where ``root`` is named for another data set or holds anything else, and if a file
        there differs from what ``seed`` generates.
        """
        root = Path(root)
        _check_own_folder(root)
        for split, rows in generate(seed).items():
            path = root / f"{split}.json"
            if not path.exists():
                write_json(path, rows)
            elif read_json(path) != rows:
                raise UserError(
                    f"{path} is not the embedded data set of seed {seed}: name its form by "
                    "--dataset_config, or choose another data_root"
                )


def _check_own_folder(root: Path) -> None:
    """Raise UserError where the embedded set would come to lie among other data, or pass for another set."""
    remedy = "name the data set's form by --dataset_config"
    if named := next((name for name in OTHERS if name in root.name.lower()), None):
        raise UserError(
            f"{shown(root)} is named for {named}: the embedded data set is not written there; {remedy}"
        )
    own = {f"{split}.json" for split in SPLIT_SIZES}
    found = sorted(path.name for path in root.iterdir()) if root.is_dir() else []
    if others := [name for name in found if name not in own and not name.startswith(".")]:
        raise UserError(
            f"{shown(root)} holds {others[0]}: the embedded data set has a folder of its own; {remedy}"
        )


READER = SampleReader()
