"""report.html: the report, its figures and every answer in one file that needs no network.

The page is the same bytes for the same inputs. Nothing that a model or a file says is trusted: text goes
through Jinja's escaping, answers travel as compressed data that the script only ever shows as text, and a
Content-Security-Policy lets the browser run this page's own script, load no file and open no connection.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from utils.comparison.page.page_data import pack, page_data
from utils.comparison.page.provenance import provenance
from utils.documents.figures import styles_of
from utils.documents.markdown_to_html import figure_of, inline, sections_of, table
from utils.documents.text import interval, p_text, percent
from utils.frame.files import write_text

if TYPE_CHECKING:
    from utils.comparison.over_seeds import SeedPair
    from utils.comparison.paired import Pair

PAGE = "report.html"
LIMIT = (
    20_000_000  # bytes of a page, at most: what a browser opens from disk at once and a mail still carries
)
RESERVE = 200_000  # of which for the tags around blocks of data, and for notes on what is left out
TEMPLATES = Path(__file__).parent / "templates"
SCRIPTS = ("page.js", "items.js", "heat.js", "answer.js", "start.js")
SHOW_ERROR = """
  const problem = document.getElementById("problem");
  problem.hidden = false;
  problem.textContent = `The items cannot be shown (${error}). A browser of 2023 or later is needed.`;
"""
# Chapters of report.md that the page has in a form of its own.
REPLACED = ("Items that changed",)

_ITEM = re.compile(r"<li>(.*?)</li>")

# Column of summary.csv -> (title, how it is printed); shown in the table of methods where any row has it.
_COLUMNS = {
    "program_accuracy": ("program", percent),
    "tolerant_accuracy": ("tolerant", percent),
    "flexible_accuracy": ("flexible", percent),
    "format_validity": ("valid format", percent),
    "truncation_rate": ("cut off", percent),
    "reward_total": ("reward", "{:.3f}".format),
    "reference_kl_per_response": ("KL to reference, nats", "{:.2f}".format),
    "mean_tokens": ("mean tokens", "{:.1f}".format),
    "sampled_completions": ("completions", "{:,.0f}".format),
    "trained_tokens": ("trained tokens", "{:,.0f}".format),
}


@dataclass(frozen=True)
class Whisker:
    """A value with its interval and single runs' values, as places 0..100 on the axis that a table shares."""

    at: float
    low: float
    high: float
    runs: list[float]
    zero: float | None
    colour: str


def write_html_report(
    path: Path,
    report: str,
    folders: Mapping[str, Sequence[Path]],
    labels: Sequence[str],
    pairs: Sequence[Pair] | Sequence[SeedPair],
    summary: tuple[Sequence[dict[str, Any]], Sequence[str]],
    by_run: Mapping[str, Sequence[float]] | None = None,
    failed: Mapping[str, str] | None = None,
) -> None:
    """Write the page beside the figures that the report names.

    Args:
        path: where to; figures are looked for in its folder.
        report: the text of report.md.
        folders: policy -> folder 10_evaluation/<policy> of each run, in the order to show them.
        labels: what the runs are called ("seed 0"); one for each folder of a policy.
        pairs: the tests.
        summary: rows and columns of summary.csv.
        by_run: policy -> accuracy in each run, where there are several.
        failed: policy -> reason, for those that could not be compared.

    Raises:
        UserError: where a file of an evaluation is damaged or holds a number that is not finite.
    """
    title, sections = sections_of(report, figure_of(path.parent))
    data = page_data(folders, labels)
    styles = {name: style.colour for name, style in styles_of(list(folders)).items()}
    rows, columns = summary
    context = {
        "title": title,
        "lead": _lead(pairs),
        "verdict": sections[0].html,
        "findings": _findings(sections[0].html),
        "sections": [section for section in sections[1:] if section.title not in REPLACED],
        "facts": _facts(data.index),
        "methods": _methods(rows, styles, by_run or {}),
        "all_columns": table(columns, [[_cell(row.get(name, "")) for name in columns] for row in rows]),
        "pairs": _pairs(pairs, data.index),
        "failed": failed or {},
        "provenance": [
            (each, table(each.heads, [[_literal(c) for c in row] for row in each.rows]))
            for each in provenance(folders)
        ],
        "colours": list(styles.values()),
    }
    style = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    script = "\n".join((TEMPLATES / name).read_text(encoding="utf-8") for name in SCRIPTS)
    # One scope, so that no name of the script can be shadowed by an element's id; a failure is shown.
    script = f'"use strict";\n(async () => {{\n{script}\n}})().catch((error) => {{{SHOW_ERROR}}});\n'
    assets = {
        "style": Markup(style),
        "script": Markup(script),
        "style_hash": _csp_hash(style),
        "script_hash": _csp_hash(script),
    }
    template = _environment().get_template("report.html.j2")
    frame = template.render(**context, **assets, chunks=[], notes=data.notes)
    chunks, left_out = pack(data, LIMIT - len(frame.encode()) - RESERVE)
    write_text(path, template.render(**context, **assets, chunks=chunks, notes=data.notes + left_out))


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["inline"] = inline
    return environment


def _csp_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _lead(pairs: Sequence[Any]) -> str:
    """How many of the differences the tests support, "" where there is one policy."""
    if not pairs:
        return ""
    supported, count = sum(pair.significant for pair in pairs), len(pairs)
    if count == 1:
        return f"The test supports {'a' if supported else 'no'} difference between the two policies."
    number = {0: f"none of the {count}", count: f"all {count}"}.get(supported, f"{supported} of {count}")
    return f"The tests support a difference for {number} pairs of policies."


def _findings(verdict: Markup) -> list[tuple[Markup, Markup]]:
    """The conclusions as (claim, numbers); empty where they are not a list."""
    claims = [Markup(item) for item in _ITEM.findall(verdict)]
    return [(Markup(claim), Markup(rest)) for claim, _, rest in (item.partition(": ") for item in claims)]


def _facts(index: Mapping[str, Any]) -> list[str]:
    """The line below the title: how much was compared."""
    items, policies, runs = len(index["ids"]), len(index["policies"]), len(index["runs"])
    facts = [f"{items:,} test items", f"{policies} {'policy' if policies == 1 else 'policies'}"]
    if runs > 1:
        facts.append(f"{runs} seeds")
    return [*facts, f"{items * policies * runs:,} answers"]


def _methods(
    rows: Sequence[Mapping[str, Any]], colours: Mapping[str, str], by_run: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    """The table of methods: accuracy with its interval on one axis, and the measures that any method has."""
    rows = [row for row in rows if _number(row.get("accuracy")) is not None]
    # Untrained models answer next to nothing; the axis starts at 0 all the same rather than hide a row.
    ends = [float(row[key]) for row in rows for key in ("accuracy_low", "accuracy_high")]
    ends += [value for values in by_run.values() for value in values]
    low = math.floor(10 * min(ends, default=0.0)) / 10
    high = max(math.ceil(10 * max(ends, default=1.0)) / 10, low + 0.1)
    shown = [
        (key, *of) for key, of in _COLUMNS.items() if any(_number(row.get(key)) is not None for row in rows)
    ]
    lines = []
    for row in rows:
        name, value = row["policy"], float(row["accuracy"])
        ci95 = (float(row["accuracy_low"]), float(row["accuracy_high"]))
        cells = []
        for key, _, form in shown:
            number = _number(row.get(key))
            cells.append((number, "" if number is None else form(number)))
        places = [_place(each, low, high) for each in (value, *ci95)]
        runs = [_place(each, low, high) for each in by_run.get(name, ())]
        lines.append(
            {
                "name": name,
                "value": value,
                "accuracy": percent(value),
                "interval": interval(ci95),
                "whisker": Whisker(*places, runs, None, colours.get(name, "#5B5B5B")),
                "cells": cells,
            }
        )
    return {
        "heads": [title for _, title, _ in shown],
        "rows": lines,
        "low": percent(low),
        "high": percent(high),
    }


def _pairs(pairs: Sequence[Any], index: Mapping[str, Any]) -> dict[str, Any]:
    """The table of pairs: difference with its interval on one axis, Holm's p, how many answers changed."""
    reach = max((abs(end) for pair in pairs for end in pair.ci95), default=0.0) or 0.01
    lines = []
    for pair in pairs:
        fixed, broken = _changed(index, pair.a, pair.b)
        places = [_place(each, -reach, reach) for each in (pair.difference, *pair.ci95)]
        lines.append(
            {
                "a": pair.a,
                "b": pair.b,
                "value": pair.difference,
                "difference": _points(pair.difference),
                "interval": f"{_points(pair.ci95[0])} to {_points(pair.ci95[1])}",
                "whisker": Whisker(*places, [], 50.0, "currentColor"),
                "p": pair.p_holm,
                "p_text": p_text(pair.p_holm).removeprefix("= "),
                "supported": pair.significant,
                "fixed": fixed,
                "broken": broken,
            }
        )
    return {"rows": lines, "reach": f"{100 * reach:.1f}", "runs": len(index["runs"])}


def _changed(index: Mapping[str, Any], a: str, b: str) -> tuple[int, int]:
    """Answers that b gets right and a wrong, and the reverse, over all runs."""
    of_a, of_b = (index["answers"][index["policies"].index(name)] for name in (a, b))
    both = [
        right
        for run_a, run_b in zip(of_a, of_b, strict=True)
        for right in zip(run_a["correct"], run_b["correct"], strict=True)
    ]
    return both.count(("0", "1")), both.count(("1", "0"))


def _place(value: float, low: float, high: float) -> float:
    return round(100 * (value - low) / (high - low), 2)


def _points(value: float) -> str:
    # Adding zero turns "-0.0" into "+0.0"; a true minus sign aligns with the plus.
    return f"{round(100 * value, 1) + 0.0:+.1f}".replace("-", "−")


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _cell(value: Any) -> str:
    """A cell of summary.csv for print."""
    return f"{value:.4g}" if isinstance(value, float) else _literal(str(value))


def _literal(text: str) -> str:
    """Text that inline Markdown shows as it is: settings such as ``**`` or ``[a](b)`` are no markup."""
    return f"`{text}`" if any(mark in text for mark in "*[`") and "`" not in text else text
