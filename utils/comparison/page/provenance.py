"""Where the compared policies come from, by the manifests of their runs, as tables for the HTML report.

What differs between two executions of the same work is not on the page: a run's name (where several are
compared it tells them apart) and git commits, which stand in every stage's manifest.json.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from utils.comparison.evaluations import evaluated_in
from utils.comparison.lineage import Trained, trained_policies
from utils.comparison.manifest_diff import flatten, load_manifests
from utils.comparison.seed_runs import lineage
from utils.documents.document import Table
from utils.frame.agreement import by_other_code
from utils.frame.effects import by_effect
from utils.frame.files import sha256_of_tree

HASH = 12  # characters of a hash that are shown
UNFOLDED = 12  # rows at most of a table that is open from the start

Stages = Mapping[Path, Mapping[str, dict]]  # run -> stage folder -> manifest, in the order of the pipeline


@dataclass(frozen=True)
class Part:
    """A table of the chapter; ``folded`` ones are shown on request."""

    title: str
    table: Table
    note: str = ""
    folded: bool = False


def provenance(folders: Mapping[str, Sequence[Path]]) -> list[Part]:
    """Runs, stages, settings that differ between methods and between runs, every setting.

    Args:
        folders: policy -> folder 10_evaluation/<policy> of each run. Those that lie in no run (metrics from
            elsewhere) are named, and have no provenance.
    """
    of_run = {name: [each for each in of if evaluated_in(each)] for name, of in folders.items()}
    outside = [[name] for name, of in folders.items() if len(of_run[name]) < len(of)]
    of_run = {name: of for name, of in of_run.items() if of}
    places = [evaluated_in(folder) for of in of_run.values() for folder in of]
    parts = []
    if places:
        manifests = {run: load_manifests(run) for run in sorted({run for run, _ in places}, key=_name)}
        stages: dict[Path, dict[str, dict]] = {run: {} for run in manifests}
        for run, stage in places:
            stages[run] |= lineage(manifests[run], stage)
        stages = {run: dict(sorted(of.items())) for run, of in stages.items()}
        trained = trained_policies(of_run)
        parts = [
            _runs(stages),
            _policies(trained, of_run, manifests),
            *_settings_of_methods(trained),
            _between_runs(stages),
            _packages(stages),
            _outputs(stages),
        ]
        parts.append(parts.pop(3))  # every setting of the training stages stands last
    note = "Only metrics were given: no manifest to read."
    parts.append(Part("Without a run", Table(["policy"], outside), note))
    return [part for part in parts if part.table.rows]


def _name(run: Path) -> str:
    return run.name


def _by_run(stages: Mapping[Path, Any], run: Path) -> list[str]:
    """The cell of a column ``run``, which is there where several runs are compared."""
    return [run.name] if len(stages) > 1 else []


def _runs(stages: Stages) -> Part:
    rows = []
    for run, of_run in stages.items():
        environments = [manifest.get("environment", {}) for manifest in of_run.values()]
        seeds = _joined(manifest.get("seed") for manifest in of_run.values())
        facts = [_joined(each.get(key, "unknown") for each in environments) for key in ("python", "device")]
        rows.append([*_by_run(stages, run), seeds, *facts])
    note = (
        "Several values: stages differ. The git commit of a stage stands in its manifest.json, not here: "
        "equal runs have equal pages."
    )
    other = [stage for of_run in stages.values() for stage, made in of_run.items() if by_other_code(made)]
    if other:
        note += f" The code has changed since {_joined(other)} ran."
    return Part("Runs", Table([*["run"] * (len(stages) > 1), "seed", "Python", "device"], rows), note)


def _policies(
    trained: Mapping[str, Sequence[Trained]],
    folders: Mapping[str, Sequence[Path]],
    manifests: Mapping[Path, dict[str, dict]],
) -> Part:
    rows = []
    for name, of_policy in trained.items():
        for each, folder in zip(of_policy, folders[name], strict=True):
            run, stage = evaluated_in(folder)
            inputs = manifests[run][stage].get("inputs", {})
            weights = [v for path, v in inputs.items() if path.startswith(f"{each.training}/")]
            trained_by = (
                f"{each.training}, checkpoint {each.checkpoint}" if each.training else "not trained here"
            )
            digest = weights[0].get("sha256", "")[:HASH] if each.training and weights else ""
            rows.append([name, *_by_run(manifests, run), str(each.seed), trained_by, digest])
    heads = ["policy", *["run"] * (len(manifests) > 1), "seed", "trained by", "weights (SHA-256)"]
    return Part("Policies", Table(heads, rows), folded=len(rows) > UNFOLDED)


def _settings_of_methods(trained: Mapping[str, Sequence[Trained]]) -> list[Part]:
    """Settings of the stage that trained each policy: those of which the values are not all one, and all."""
    stages = {name: of[0].stages.get(of[0].training) for name, of in trained.items()}
    every = _side_by_side({name: _flat(stage.get("config", {})) for name, stage in stages.items() if stage})
    # A setting that one method alone has is no difference to the others.
    differ = every[every.replace("–", None).nunique(axis=1) > 1] if len(every) else every
    note = (
        "The stage that trained each policy, in its first run; – where it has no such setting. Settings that "
        "one method alone has are among all settings."
    )
    return [
        Part("Settings that differ between methods", _table("setting", differ), note, folded=True),
        Part("Every setting of the training stages", _table("setting", every), folded=True),
    ]


def _between_runs(stages: Stages) -> Part:
    """Settings of one stage folder that differ between the runs which have it."""
    rows = []
    for stage in sorted({stage for of in stages.values() for stage in of}):
        having = {run.name: of[stage] for run, of in stages.items() if stage in of}
        flat = {run: _flat({"seed": of.get("seed"), **of.get("config", {})}) for run, of in having.items()}
        settings = _side_by_side(flat)
        settings = settings[settings.nunique(axis=1) > 1].reindex(columns=map(_name, stages), fill_value="–")
        rows += [[f"{stage}: {key}", *values] for key, *values in settings.itertuples()]
    table = Table(["setting", *map(_name, stages)], rows)
    return Part("Settings that differ between runs", table, folded=True)


def _packages(stages: Stages) -> Part:
    found = [
        {"package": package, "run": run.name, "version": str(version)}
        for run, of_run in stages.items()
        for manifest in of_run.values()
        for package, version in manifest.get("environment", {}).get("packages", {}).items()
    ]
    frame = pd.DataFrame(found, columns=["package", "run", "version"])
    versions = frame.pivot_table("version", "package", "run", _joined, fill_value="–")
    versions = versions.reindex(columns=map(_name, stages), fill_value="–")
    if (versions.nunique(axis=1) == 1).all():
        versions = versions.iloc[:, :1].set_axis(["version"], axis=1)
    return Part("Package versions", _table("package", versions), folded=True)


def _outputs(stages: Stages) -> Part:
    rows = [
        [*_by_run(stages, run), stage, str(manifest.get("seed")), _digest(manifest)]
        for run, of_run in stages.items()
        for stage, manifest in of_run.items()
    ]
    heads = [*["run"] * (len(stages) > 1), "stage", "seed", "outputs (SHA-256)"]
    note = "One hash of the names and hashes of all files that a stage's manifest.json lists as its outputs."
    return Part("Stages and their outputs", Table(heads, rows), note, folded=True)


def _digest(manifest: Mapping[str, Any]) -> str:
    return sha256_of_tree({path: facts["sha256"] for path, facts in manifest["outputs"].items()})[:HASH]


def _flat(settings: Mapping[str, Any]) -> dict[str, str]:
    """Nested settings as dotted keys with their values as text; empty groups are left out."""
    return {key: str(value) for key, value in flatten(settings).items() if value != {}}


def _side_by_side(columns: Mapping[str, Mapping[str, str]]) -> pd.DataFrame:
    """Settings by key, the largest effect first, a column each, a dash where one has no such setting."""
    found = pd.DataFrame(columns, dtype=object).fillna("–")
    return found.loc[sorted(found.index, key=lambda key: (by_effect(key), key))]


def _table(head: str, frame: pd.DataFrame) -> Table:
    return Table([head, *frame.columns], [list(row) for row in frame.itertuples()])


def _joined(values: Iterable[Any]) -> str:
    """Distinct values in the order in which they come."""
    return ", ".join(dict.fromkeys(map(str, values)))
