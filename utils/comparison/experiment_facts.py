"""What one asks before any result: which model, how much of which data, which training, which seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from utils.comparison.evaluations import evaluated_in
from utils.comparison.manifest_diff import load_manifests
from utils.comparison.topic import Comparison
from utils.documents.document import Block, Line, Table, strong
from utils.documents.text import listed
from utils.frame.pipeline import ROWS

CHECK, PREPARE = ROWS["check"].folder, ROWS["prepare"].folder
Manifests = Mapping[str, Mapping[str, Any]]  # of one run: stage folder -> manifest


class ExperimentFacts(NamedTuple):
    """The facts by name, in the order in which they are asked for, and what forbids conclusions.

    Attributes:
        facts: name -> in words; without what no manifest says (metrics from elsewhere).
        limits: "quick test …" and "a part of the test set …", none for a whole experiment.
    """

    facts: dict[str, str]
    limits: list[str]

    def blocks(self) -> list[Block]:
        """The facts for the head of the report."""
        rows: list[list[Line]] = [["", strong(limit)] for limit in self.limits]
        rows += [[name, text] for name, text in self.facts.items()]
        return [Table(["", "what was compared"], rows)] if rows else []

    def lines(self) -> list[str]:
        """The facts for the screen."""
        notes = [f"NOTE: {limit}" for limit in self.limits]
        return notes + [f"{name}: {text}" for name, text in self.facts.items()]


def experiment_facts(comparison: Comparison) -> ExperimentFacts:
    """Read the facts off the manifests of the runs that are compared."""
    places = [evaluated_in(folder) for of_policy in comparison.folders.values() for folder in of_policy]
    runs = {run: load_manifests(run) for run in dict.fromkeys(run for run, _ in filter(None, places))}
    first = next(iter(comparison.results.values()))[0].metrics
    items = max(share.n for share in comparison.accuracies.values())
    split = first.get("split") or ""
    held = max((_rows(of_run, split) for of_run in runs.values()), default=0)
    evaluations = [runs[place[0]][place[1]] for place in filter(None, places)]
    facts = {
        "model": _distinct(map(_model, evaluations)),
        "data": _data(first, split, items, held),
        "training": _distinct(map(_training, runs.values())),
        "seeds": _seeds(comparison, evaluations),
    }
    limits = []
    if any(_config(of, "quick_test") for of_run in runs.values() for of in of_run.values()):
        limits.append("quick test (--quick_test): too small for conclusions")
    if 0 < items < held:
        limits.append(f"a part of the {split} split: {items:,} of {held:,} items")
    return ExperimentFacts({name: text for name, text in facts.items() if text}, limits)


def _config(manifest: Mapping[str, Any], *keys: str) -> Any:
    """A value of a manifest's configuration, None where it is not there."""
    value: Any = manifest.get("config", {})
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _model(evaluation: Mapping[str, Any]) -> str:
    """The model by its name and size, and its teacher."""
    name, teacher = (
        _config(evaluation, "model", "model", key) for key in ("name_or_path", "teacher_name_or_path")
    )
    if not name:
        return ""
    size = _config(evaluation, "model", "metadata", "parameters")
    shown = Path(name).name + (f" ({_millions(size)} parameters)" if size else "")
    return shown + (f", teacher {Path(teacher).name}" if teacher else "")


def _millions(parameters: int) -> str:
    """A size in words: 0.96 million, 134.5 million, 7.6 billion."""
    unit, word = (10**9, "billion") if parameters >= 10**9 else (10**6, "million")
    size = parameters / unit
    return f"{size:.2f} {word}" if size < 1 else f"{size:.1f} {word}"


def _rows(of_run: Manifests, split: str) -> int:
    """How many usable rows the raw split has, or else the prepared one; 0 where neither is known."""
    for stage, key in ((CHECK, "usable"), (PREPARE, "records")):
        found = of_run.get(stage, {}).get("metrics", {}).get(split)
        if isinstance(found, Mapping) and key in found:
            return int(found[key])
    return 0


def _data(metrics: Mapping[str, Any], split: str, items: int, held: int) -> str:
    name = metrics.get("dataset") or ""
    count = f"{items:,} of {held:,} items" if held else f"{items:,} items"
    return f"{name}, {split} split: {count}" if name and split else f"{name}: {count}" if name else count


def _training(of_run: Manifests) -> str:
    """How many records train and val have, and of how many rows."""
    found = of_run.get(PREPARE, {}).get("metrics", {})
    sizes = {split: (found.get(split) or {}).get("records") for split in ("train", "val")}
    parts = []
    for split, what in (("train", "to train on"), ("val", "to validate on")):
        if (size := sizes[split]) is not None:
            held = _rows(of_run, split)
            parts.append(f"{size:,}{f' of {held:,}' if held > size else ''} items {what}")
    return listed(parts) if parts else ""


def _seeds(comparison: Comparison, evaluations: Sequence[Mapping[str, Any]]) -> str:
    if comparison.experiment:
        seeds = comparison.experiment.seeds
        return f"{len(seeds)}: {', '.join(map(str, seeds))}"
    seeds = sorted({each["seed"] for each in evaluations if each.get("seed") is not None})
    if len(seeds) != 1:
        return ", ".join(map(str, seeds))
    return f"one, {seeds[0]}: intervals and tests are about other items, not about other trainings"


def _distinct(texts: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(filter(None, texts)))
