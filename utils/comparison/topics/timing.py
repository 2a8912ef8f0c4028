"""Seconds that methods took, from runtime.json: they differ between executions, so no manifest lists them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from utils.comparison.estimates import mean_known
from utils.comparison.lineage import Trained
from utils.comparison.topic import Comparison, Topic
from utils.comparison.topics.method_cost import TIMING, draw_accuracies
from utils.documents.document import (
    Bullets,
    Document,
    Figure,
    Number,
    Paragraph,
    Table,
    code,
    emphasis,
    sentence,
)
from utils.documents.figures import drawing
from utils.frame.files import UserError, read_json, write_csv, write_text
from utils.frame.manifest import RUNTIME
from utils.frame.pipeline import counts_cost

FIGURE, TABLE = "timing.png", "timing.csv"
PHASES = ("sampling", "scoring", "updating")
PARTS = (*PHASES, "other")
COLUMNS = ["policy", "run", "seed", *PARTS, "seconds", "note"]
# Light to dark by how much of the method it is; white is what the stages do besides.
SHADES = {"sampling": "#9FB6C3", "scoring": "#5F7F92", "updating": "#22404F", "other": "#FFFFFF"}


@dataclass(frozen=True)
class Seconds:
    """What one policy of one run took, over the stages that it rests on; None where it is not known.

    ``other`` is what the three phases leave of ``total``: loading, validation, writing.
    """

    sampling: float | None = None
    scoring: float | None = None
    updating: float | None = None
    total: float | None = None
    note: str = ""

    @property
    def other(self) -> float | None:
        if None in (self.total, self.sampling):
            return None
        return self.total - (self.sampling + self.scoring + self.updating)


Times = Mapping[str, Sequence[Seconds]]


def seconds_of(trained: Trained) -> Seconds:
    """Sum what runtime.json of a policy's stages says."""
    if not trained.stages:
        return Seconds(note="not trained in its run")
    total, phases, known, notes = 0.0, dict.fromkeys(PHASES, 0.0), True, []
    for stage in trained.stages:
        runtime = _runtime(trained.run_dir / stage)
        if runtime is None:
            return Seconds(note=f"{stage} has no {RUNTIME} that can be read")
        split = runtime.get("seconds_by_phase", {})
        for phase in split:
            phases[phase] += split[phase]
        if not split and counts_cost(stage):
            known = False
            notes.append(f"{stage} does not say what it spent its time on")
        if len(runtime.get("sessions", [])) > 1:
            # The frame times the last session alone; the phases are kept over all of them.
            notes.append(f"{stage} was interrupted: at least so many")
        total += max(runtime["seconds"], sum(split.values()))
    return Seconds(**(phases if known else {}), total=total, note="; ".join(notes))


def _runtime(folder: Path) -> dict[str, Any] | None:
    try:
        return read_json(folder / RUNTIME)
    except UserError:  # a run copied without it, or a file cut short: no result rests on it
        return None


def times_of(trained: Mapping[str, Sequence[Trained]]) -> dict[str, list[Seconds]]:
    """Name -> seconds in each run."""
    return {name: [seconds_of(each) for each in of_policy] for name, of_policy in trained.items()}


def mean_seconds(times: Sequence[Seconds], name: str) -> float | None:
    """Mean of "total", "other" or a phase over the runs, None where any of them does not know it."""
    return mean_known([getattr(seconds, name) for seconds in times])


def topic(comparison: Comparison) -> Topic:
    """Files of their own beside the report, which says nothing of seconds."""
    trained, times = comparison.trained, times_of(comparison.trained)
    others = [name for name, of_policy in trained.items() if not of_policy[0].is_sft]
    timed = any(mean_seconds(times[name], "total") is not None for name in others)
    files = {
        TABLE: lambda path: write_csv(path, timing_rows(trained, times), COLUMNS),
        TIMING: lambda path: write_text(path, timing_document(trained, times, timed).markdown()),
    }
    if timed:
        sft = [name for name in trained if name not in others]
        files[FIGURE] = partial(plot_timing, comparison, times, sft)
    return Topic(files=files)


def timing_rows(trained: Mapping[str, Sequence[Trained]], times: Times) -> list[dict[str, Any]]:
    """Rows of timing.csv: one per policy and run, blank where not known."""
    rows = []
    for name, of_policy in trained.items():
        for each, seconds in zip(of_policy, times[name], strict=True):
            values = {part: getattr(seconds, part) for part in PARTS} | {"seconds": seconds.total}
            rounded = {key: "" if value is None else round(value, 1) for key, value in values.items()}
            where = {"policy": name, "run": each.run_dir.name, "seed": each.seed}
            rows.append(where | rounded | {"note": seconds.note})
    return rows


def timing_document(trained: Mapping[str, Sequence[Trained]], times: Times, figure: bool) -> Document:
    """timing.md; ``figure`` says whether the plot is beside it."""
    several = any(len(of_policy) > 1 for of_policy in times.values())
    rows = []
    for name, of_policy in times.items():
        row = [name, *(_cell(mean_seconds(of_policy, part)) for part in (*PARTS, "total"))]
        if several:
            row.append(" / ".join(_cell(seconds.total).text for seconds in of_policy))
        rows.append(row)
    heads = ["method", *PARTS, "total", *(["total of each seed"] if several else [])]
    notes = [
        [f"{name} of ", code(each.run_dir.name), f": {seconds.note}."]
        for name, of_policy in trained.items()
        for each, seconds in zip(of_policy, times[name], strict=True)
        if seconds.note
    ]
    opening = (
        f"What a method's stages after SFT took{', means over the seeds' if several else ''}; SFT's row is "
        "its own training. Seconds depend on the machine and on what else it was doing: stages that ran side "
        "by side shared it, and compare only with others that ran so. That is why this file, timing.csv and "
        "timing.png are listed in no manifest."
    )
    terms = sentence(
        "{} is rewards, teacher, reference and old log-probabilities; {} is loading, validation and writing.",
        *(emphasis("Scoring"), emphasis("other")),
    )
    plot = Figure(FIGURE, "Accuracy against seconds, and where they went") if figure else None
    blocks = [Paragraph(opening), Table(heads, rows), Paragraph(terms), Bullets(notes), plot]
    return Document("Seconds", blocks)


def _cell(seconds: float | None) -> Number:
    return Number("–" if seconds is None else f"{seconds:,.0f}", seconds)


def plot_timing(comparison: Comparison, times: Times, sft: Sequence[str], path: Path) -> None:
    """Test accuracy against seconds, and what the seconds went into; both over the stages after SFT."""
    totals = {name: 0.0 if name in sft else mean_seconds(times[name], "total") for name in times}
    totals = {name: total for name, total in totals.items() if total is not None}
    split = [name for name in totals if mean_seconds(times[name], "other") is not None]
    with drawing(path, (11, 4.6), (1, 1)) as (_, axes):
        draw_accuracies(axes[0], totals, comparison.accuracies, comparison.styles)
        axes[0].set(xlabel="seconds after SFT", title="Accuracy against seconds")
        left = [0.0] * len(split)
        for part in PARTS:
            means = [mean_seconds(times[name], part) for name in split]
            bars = {"color": SHADES[part], "edgecolor": "#22404F", "linewidth": 0.8, "label": part}
            axes[1].barh(split, means, left=left, height=0.6, **bars)
            left = [start + mean for start, mean in zip(left, means, strict=True)]
        for row, total in enumerate(left):
            label = {"textcoords": "offset points", "va": "center", "fontsize": 9}
            axes[1].annotate(f"{total:,.0f} s", (total, row), (4, 0), **label)
        axes[1].invert_yaxis()
        axes[1].margins(x=0.12)
        axes[1].set_xlim(left=0)
        axes[1].set_xlabel("seconds (sft: its own training)" if set(sft) & set(split) else "seconds")
        axes[1].set_title("Where they went")
        axes[1].grid(axis="x")
        for axis in axes:
            axis.xaxis.set_major_formatter("{x:,.0f}")
            axis.legend(frameon=False, ncols=5, loc="upper center", bbox_to_anchor=(0.5, -0.13))
