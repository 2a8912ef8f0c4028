"""Seconds that methods took, from runtime.json: they differ between executions, so no manifest lists them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from utils.comparison.lineage import Trained
from utils.comparison.topics.cost import WITHOUT_COST
from utils.documents.text import markdown_table
from utils.frame.files import UserError, read_json
from utils.frame.manifest import RUNTIME

PHASES = ("sampling", "scoring", "updating")
COLUMNS = ["policy", "run", "seed", "sampling", "scoring", "updating", "other", "seconds", "note"]


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
        return None if None in (self.total, self.sampling) else self.total - self.phases

    @property
    def phases(self) -> float:
        return self.sampling + self.scoring + self.updating


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
        if not split and not stage.startswith(WITHOUT_COST):
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
    values = [getattr(seconds, name) for seconds in times]
    return None if None in values else fmean(values)


def timing_rows(trained: Mapping[str, Sequence[Trained]], times: Times) -> list[dict[str, Any]]:
    """Rows of timing.csv: one per policy and run, blank where not known."""
    rows = []
    for name, of_policy in trained.items():
        for each, seconds in zip(of_policy, times[name], strict=True):
            values = {phase: getattr(seconds, phase) for phase in (*PHASES, "other")} | {
                "seconds": seconds.total
            }
            rounded = {key: "" if value is None else round(value, 1) for key, value in values.items()}
            where = {"policy": name, "run": each.run_dir.name, "seed": each.seed}
            rows.append(where | rounded | {"note": seconds.note})
    return rows


def render_timing(trained: Mapping[str, Sequence[Trained]], times: Times, figure: str) -> str:
    """timing.md; ``figure`` is the plot's file name beside it, "" where there is none."""
    several = any(len(of_policy) > 1 for of_policy in times.values())
    rows = []
    for name, of_policy in times.items():
        means = [mean_seconds(of_policy, part) for part in (*PHASES, "other", "total")]
        row = [name, *("–" if mean is None else f"{mean:,.0f}" for mean in means)]
        if several:
            row.append(" / ".join("–" if s.total is None else f"{s.total:,.0f}" for s in of_policy))
        rows.append(row)
    heads = ["method", *PHASES, "other", "total", *(["total of each seed"] if several else [])]
    notes = [
        f"- {name} of `{each.run_dir.name}`: {seconds.note}."
        for name, of_policy in trained.items()
        for each, seconds in zip(of_policy, times[name], strict=True)
        if seconds.note
    ]
    parts = [
        "# Seconds",
        f"What a method's stages after SFT took{', means over the seeds' if several else ''}; SFT's row is "
        "its own training. Seconds depend on the machine and on what else it was doing: stages that ran side "
        "by side shared it, and compare only with others that ran so. That is why this file, timing.csv and "
        "timing.png are listed in no manifest.",
        markdown_table(heads, rows),
        "*Scoring* is rewards, teacher, reference and old log-probabilities; *other* is loading, validation "
        "and writing.",
        "\n".join(notes),
        f"![Accuracy against seconds, and where they went]({figure})" if figure else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
