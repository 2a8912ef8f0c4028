"""Where the compared policies come from, by the manifests of their runs, as tables for the HTML report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.comparison.evaluations import evaluated_in
from utils.comparison.lineage import Trained, trained_policies
from utils.comparison.manifest_diff import load_manifests
from utils.comparison.seed_runs import lineage
from utils.frame.files import sha256_of

HASH = 12  # characters of a hash that are shown
UNFOLDED = 12  # rows at most of a table that is open from the start


@dataclass(frozen=True)
class Table:
    """A table of the chapter; ``folded`` ones are shown on request."""

    title: str
    heads: list[str]
    rows: list[list[str]]
    note: str = ""
    folded: bool = False


def provenance(folders: Mapping[str, Sequence[Path]]) -> list[Table]:
    """Runs and code, stages, settings that differ between methods and between runs, every setting.

    Args:
        folders: policy -> folder 10_evaluation/<policy> of each run. Those that lie in no run (metrics from
            elsewhere) are named, and have no provenance.
    """
    of_run = {name: [each for each in of if evaluated_in(each)] for name, of in folders.items()}
    outside = [name for name, of in folders.items() if len(of_run[name]) < len(of)]
    of_run = {name: of for name, of in of_run.items() if of}
    tables = []
    if of_run:
        runs = {evaluated_in(folder)[0] for of in of_run.values() for folder in of}
        manifests = {run: load_manifests(run) for run in sorted(runs, key=lambda run: run.name)}
        stages = {run: _stages(manifests[run], run, of_run) for run in manifests}
        trained = trained_policies(of_run)
        tables = [
            _runs(stages),
            _policies(trained, of_run, manifests),
            _between_methods(trained),
            _between_runs(stages),
            _packages(stages),
            _manifests(stages),
            _every_setting(trained),
        ]
    if outside:
        rows = [[name] for name in outside]
        tables.append(
            Table("Without a run", ["policy"], rows, "Only metrics were given: no manifest to read.")
        )
    return [table for table in tables if table.rows]


def _stages(manifests: dict[str, dict], run: Path, folders: Mapping[str, Sequence[Path]]) -> dict[str, dict]:
    """The stages of a run that its compared evaluations rest on, in the order of the pipeline."""
    places = [evaluated_in(folder) for of in folders.values() for folder in of]
    found: dict[str, dict] = {}
    for place, stage in places:
        if place == run:
            found |= lineage(manifests, stage)
    return {stage: found[stage] for stage in sorted(found)}


def _runs(stages: Mapping[Path, Mapping[str, dict]]) -> Table:
    rows = []
    for run, of_run in stages.items():
        environments = [manifest.get("environment", {}) for manifest in of_run.values()]
        commits = _joined(
            str(each.get("git_commit") or "unknown")[:HASH] + (" + changes" if each.get("git_dirty") else "")
            for each in environments
        )
        rows.append(
            [
                run.name,
                _joined(str(manifest.get("seed")) for manifest in of_run.values()),
                commits,
                _joined(str(each.get("python", "unknown")) for each in environments),
                _joined(str(each.get("device", "unknown")) for each in environments),
            ]
        )
    note = "+ changes: the working tree was not that commit's. Several values: stages differ."
    return Table("Runs", ["run", "seed", "git commit", "Python", "device"], rows, note)


def _policies(
    trained: Mapping[str, Sequence[Trained]],
    folders: Mapping[str, Sequence[Path]],
    manifests: Mapping[Path, dict[str, dict]],
) -> Table:
    rows = []
    for name, of_policy in trained.items():
        for each, folder in zip(of_policy, folders[name], strict=True):
            run, stage = evaluated_in(folder)
            inputs = manifests[run][stage].get("inputs", {})
            weights = f"{each.training}/" if each.training else None
            found = [v for path, v in inputs.items() if weights and path.startswith(weights)]
            digest = found[0].get("sha256", "")[:HASH] if found else ""
            trained_by = (
                f"{each.training}, checkpoint {each.checkpoint}" if each.training else "not trained here"
            )
            rows.append([name, run.name, str(each.seed), trained_by, digest])
    heads = ["policy", "run", "seed", "trained by", "weights (SHA-256)"]
    return Table("Policies", heads, rows, folded=len(rows) > UNFOLDED)


def _between_methods(trained: Mapping[str, Sequence[Trained]]) -> Table:
    """Settings of the stage that trained each method, where the methods' values are not all one."""
    flat = _training_settings(trained)
    keys = sorted({key for of in flat.values() for key in of})
    rows = [
        [key, *(of.get(key, "–") for of in flat.values())]
        for key in keys
        if len({of.get(key) for of in flat.values()}) > 1
    ]
    shared = [row for row in rows if "–" not in row]
    rows = shared + [row for row in rows if row not in shared]
    note = "The stage that trained each policy, in its first run; – where it has no such setting."
    return Table("Settings that differ between methods", ["setting", *flat], rows, note, folded=True)


def _between_runs(stages: Mapping[Path, Mapping[str, dict]]) -> Table:
    """Settings of one stage folder that differ between the runs which have it."""
    rows, names = [], [run.name for run in stages]
    for stage in sorted({stage for of in stages.values() for stage in of}):
        flat = [
            _flat({"seed": of[stage].get("seed"), **of[stage].get("config", {})}) if stage in of else None
            for of in stages.values()
        ]
        for key in sorted({key for of in flat if of for key in of}):
            values = ["–" if of is None else of.get(key, "–") for of in flat]
            if len({value for value, of in zip(values, flat, strict=True) if of is not None}) > 1:
                rows.append([f"{stage}: {key}", *values])
    return Table("Settings that differ between runs", ["setting", *names], rows, folded=True)


def _packages(stages: Mapping[Path, Mapping[str, dict]]) -> Table:
    found: dict[str, dict[str, list[str]]] = {}
    for run, of_run in stages.items():
        for manifest in of_run.values():
            for package, version in manifest.get("environment", {}).get("packages", {}).items():
                found.setdefault(package, {}).setdefault(run.name, []).append(str(version))
    names = [run.name for run in stages]
    rows = [
        [package, *(_joined(found[package].get(run, ["–"])) for run in names)] for package in sorted(found)
    ]
    if all(len(set(row[1:])) == 1 for row in rows):
        return Table("Package versions", ["package", "version"], [row[:2] for row in rows], folded=True)
    return Table("Package versions", ["package", *names], rows, folded=True)


def _manifests(stages: Mapping[Path, Mapping[str, dict]]) -> Table:
    rows = [
        [run.name, stage, str(manifest.get("seed")), sha256_of(run / stage / "manifest.json")[:HASH]]
        for run, of_run in stages.items()
        for stage, manifest in of_run.items()
    ]
    heads = ["run", "stage", "seed", "manifest.json (SHA-256)"]
    return Table("Stages and their manifests", heads, rows, folded=True)


def _every_setting(trained: Mapping[str, Sequence[Trained]]) -> Table:
    flat = _training_settings(trained)
    keys = sorted({key for of in flat.values() for key in of})
    rows = [[key, *(of.get(key, "–") for of in flat.values())] for key in keys]
    return Table("Every setting of the training stages", ["setting", *flat], rows, folded=True)


def _training_settings(trained: Mapping[str, Sequence[Trained]]) -> dict[str, dict[str, str]]:
    """Policy -> settings of the stage that trained it, for policies that a stage trained."""
    return {
        name: _flat(of[0].stages[of[0].training].get("config", {}))
        for name, of in trained.items()
        if of[0].training in of[0].stages
    }


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted keys with their values as text."""
    if not isinstance(value, dict):
        return {prefix: str(value)}
    found: dict[str, str] = {}
    for key, inner in value.items():
        found |= _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return found


def _joined(values: Any) -> str:
    """Distinct values in the order in which they come."""
    return ", ".join(dict.fromkeys(values))
