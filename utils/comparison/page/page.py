"""report.html: the report, its figures and every answer in one file that needs no network.

The page is the same bytes for the same inputs. Nothing that a model or a file says is trusted: text goes
through Jinja's escaping, answers travel as compressed data that the script only ever shows as text, and a
Content-Security-Policy lets the browser run this page's own script, load no file and open no connection.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from utils.comparison.experiment_facts import ExperimentFacts
from utils.comparison.page.page_data import pack, page_data
from utils.comparison.page.provenance import provenance
from utils.comparison.topic import Comparison
from utils.documents.document import Bullets, Document, Table, block_html, line_html, section_html
from utils.documents.text import interval, p_cell, percent, points
from utils.frame.files import write_text
from utils.frame.stage import no_bar

PAGE = "report.html"
LIMIT = 20_000_000  # bytes of a page at most: what a browser opens at once and a mail still carries
RESERVE = 200_000  # of which for the tags around blocks of data, and for notes on what is left out
TEMPLATES = Path(__file__).parent / "templates"
SCRIPTS = ("page.js", "items.js", "heat.js", "answer.js", "start.js")
SHOW_ERROR = """
  const problem = document.getElementById("problem");
  problem.hidden = false;
  problem.textContent = `The items cannot be shown (${error}). A browser of 2023 or later is needed.`;
"""


class Column(NamedTuple):
    """A column of summary.csv in the table of methods, which shows it where any row has it."""

    title: str
    printed: Callable[[float], str]
    meaning: str


_COLUMNS = {
    "program_accuracy": Column("program", percent, "the program is the gold's, or equal to it"),
    "tolerant_accuracy": Column("tolerant", percent, "the number is right up to rounding and per cent"),
    "flexible_accuracy": Column("flexible", percent, "the last number of the answer is right"),
    "format_validity": Column("valid format", percent, "answers of the form that was asked for"),
    "truncation_rate": Column("cut off", percent, "answers that reached the length limit"),
    "reward_total": Column("reward", "{:.3f}".format, "mean total reward of an answer, weights applied"),
    "reference_kl_per_response": Column(
        "KL to reference, nats",
        "{:.2f}".format,
        "how far training moved the policy from its start, summed over an answer's tokens",
    ),
    "mean_tokens": Column("mean tokens", "{:.1f}".format, "mean length of an answer"),
    "sampled_completions": Column(
        "completions", "{:,.0f}".format, "sampled to learn from, after SFT; discarded ones count"
    ),
    "trained_tokens": Column(
        "trained tokens", "{:,.0f}".format, "tokens that went through a gradient, each pass counted"
    ),
}
ACCURACY = "items that are right by the data set's official rule"


def write_page(
    path: Path,
    report: Document,
    comparison: Comparison,
    facts: ExperimentFacts,
    summary: tuple[Sequence[Mapping[str, Any]], Sequence[str]],
    progress: Callable[..., Iterable] = no_bar,
) -> None:
    """Write the page beside the figures that the report names.

    Args:
        path: where to; figures are looked for in its folder.
        facts: what was compared, for the head of the page.
        summary: rows and columns of summary.csv.
        progress: as `StageContext.progress`.

    Raises:
        UserError: where a file of an evaluation is damaged or holds a number that is not finite.
    """
    seeds = comparison.experiment.seeds if comparison.experiment else []
    data = page_data(comparison.folders, [f"seed {seed}" for seed in seeds] or [""])
    rows, columns = summary
    verdict = report.lead[-1]
    style = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    script = "\n".join((TEMPLATES / name).read_text(encoding="utf-8") for name in SCRIPTS)
    # One scope, so that no name of the script can be shadowed by an element's id; a failure is shown.
    script = f'"use strict";\n(async () => {{\n{script}\n}})().catch((error) => {{{SHOW_ERROR}}});\n'
    ends = [end for pair in comparison.pairs for end in pair.ci95]
    context = {
        "report": report,
        "figures": path.parent,
        "facts": facts,
        "counts": _counts(data.index),
        "verdict": verdict,
        "findings": verdict.lines if isinstance(verdict, Bullets) else (),
        "comparison": comparison,
        "seeds": seeds,
        "axis": _axis(comparison),
        "rows": {row["policy"]: row for row in rows},
        "measures": {key: of for key, of in _COLUMNS.items() if any(row.get(key, "") != "" for row in rows)},
        "accuracy_meaning": ACCURACY,
        "all_columns": Table(columns, [[_cell(row[name]) for name in columns] for row in rows]),
        "reach": max(map(abs, ends), default=0.0) or 0.01,
        "changed": lambda pair: _changed(data.index, pair.a, pair.b),
        "provenance": provenance(comparison.folders),
        "style": Markup(style),
        "style_hash": csp_hash(style),
        "script": Markup(script),
        "script_hash": csp_hash(script),
    }
    template = _environment().get_template("report.html.j2")
    frame = template.render(**context, chunks=[], notes=data.notes)
    chunks, left_out = pack(data, LIMIT - len(frame.encode()) - RESERVE, progress)
    write_text(path, template.render(**context, chunks=chunks, notes=data.notes + left_out))


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"line": line_html, "block": block_html, "section": section_html}
    environment.filters |= {"percent": percent, "interval": interval, "p": p_cell, "place": _place}
    environment.filters["points"] = lambda value: points(value).replace("-", "−")  # aligns with the plus
    return environment


def csp_hash(text: str) -> str:
    """How a Content-Security-Policy names a script or style that it permits."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _counts(index: Mapping[str, Any]) -> list[str]:
    """The line below the title: how much was compared."""
    items, policies, runs = len(index["ids"]), len(index["policies"]), len(index["runs"])
    counts = [f"{items:,} test items", f"{policies} {'policy' if policies == 1 else 'policies'}"]
    counts += [f"{runs} seeds"] if runs > 1 else []
    return [*counts, f"{items * policies * runs:,} answers"]


def _axis(comparison: Comparison) -> tuple[float, float]:
    """The ends of the axis that all accuracies share: tenths around all intervals and seeds."""
    # Untrained models answer next to nothing; the axis starts at 0 all the same rather than hide a row.
    ends = [end for share in comparison.accuracies.values() for end in (*share.ci95, *share.by_run)]
    low = math.floor(10 * min(ends)) / 10
    return low, max(math.ceil(10 * max(ends)) / 10, low + 0.1)


def _place(value: float, axis: tuple[float, float]) -> float:
    """Where on an axis a value stands, 0..200."""
    low, high = axis
    return 2 * round(100 * (value - low) / (high - low), 2)


def _changed(index: Mapping[str, Any], a: str, b: str) -> dict[str, int]:
    """Answers that b gets right and a wrong, and the reverse, over all runs."""
    of_a, of_b = (index["answers"][index["policies"].index(name)] for name in (a, b))
    both = [
        right
        for run_a, run_b in zip(of_a, of_b, strict=True)
        for right in zip(run_a["correct"], run_b["correct"], strict=True)
    ]
    return {"fixed": both.count(("0", "1")), "broken": both.count(("1", "0"))}


def _cell(value: Any) -> str:
    """A cell of summary.csv for print."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
