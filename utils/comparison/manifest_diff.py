"""What differs between the manifests of two runs, most consequential first.

Data come before configuration, configuration before code, code before outputs: an output differs because
something above it does. What follows from another difference is marked as its consequence, and counted by
stage in the text: inputs that an earlier stage wrote, and outputs of a stage of which something else differs.
How far a stage's main share moved stands first there. An
output that differs though nothing else of its stage does is no consequence and is shown. A value that
differs alike in several stages is one line.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from utils.documents.text import percent, plural, points
from utils.frame.command_line import output_root, parse, resolve
from utils.frame.effects import by_effect
from utils.frame.files import UserError, resolve_path, visible_files, write_json
from utils.frame.manifest import CHECKSUM, read_manifest
from utils.frame.stage import Stage

CATEGORIES = ("stages", "data", "config", "code", "outputs")
ABSENT = "(absent)"
_LABELS = ("schema_version", "stage", "variant", "run_id", CHECKSUM)
# Metrics that are a stage's main share: of an evaluation, a training and candidates.
HEADLINES = {"accuracy": "accuracy", "final_val_accuracy": "val accuracy", "pass@1": "pass@1"}
# What a consequence is, with its singular and plural.
_KINDS = {
    "input": ("input",),
    "output": ("output",),
    "metric": ("metric",),
    "criterion": ("criterion", "criteria"),
}
NAMED = 3  # stages that a line names


@dataclass(frozen=True)
class Difference:
    """One value that differs: in which stage folder, under which key, and what each run has there.

    ``consequence``: it follows from another difference.
    """

    category: str
    stage: str
    key: str
    a: Any
    b: Any
    consequence: bool = False


def load_manifests(run: Path) -> dict[str, dict]:
    """Stage folder relative to the run -> its manifest.

    Raises UserError where the folder does not exist or holds no finished stage.
    """
    if not run.is_dir():
        raise UserError(f"no run at {run}; give a run id under --outputs_root, or the run's folder")
    found = [path for path in visible_files(run) if path.name == "manifest.json"]
    if not found:
        raise UserError(f"{run}: no finished stage (no manifest.json below it)")
    return {path.parent.relative_to(run).as_posix(): read_manifest(path.parent) for path in found}


def diff_runs(a: dict[str, dict], b: dict[str, dict]) -> list[Difference]:
    """All differences between two runs' manifests; run ids are labels and never count."""
    found = []
    for stage in sorted(set(a) | set(b)):
        if stage not in a or stage not in b:
            present = ("finished", ABSENT) if stage in a else (ABSENT, "finished")
            found.append(Difference("stages", stage, "", *present))
        else:
            found.extend(_diff_stage(stage, a[stage], b[stage]))
    caused = {d.stage for d in found if d.category in ("data", "config", "code")}
    found = [replace(d, consequence=_follows(d, a | b, caused)) for d in found]

    def order(d: Difference) -> tuple:
        return CATEGORIES.index(d.category), d.consequence, *_effect(d), d.stage, d.key

    return sorted(found, key=order)


def _follows(difference: Difference, stages: Collection[str], caused: Collection[str]) -> bool:
    """Whether it is an input that a stage wrote, or an output of a stage of which something else differs."""
    if difference.category == "outputs":
        return difference.stage in caused
    path = difference.key.removeprefix("input ")
    return difference.category == "data" and any(path.startswith(stage + "/") for stage in stages)


def _effect(difference: Difference) -> tuple[bool, int]:
    """Sort key of configuration: whether no result depends on the value, and the place of its kind."""
    if difference.category != "config":
        return False, 0
    last, place = by_effect(difference.key)
    return last or left_empty(difference), place


def left_empty(difference: Difference) -> bool:
    """Whether it is an option that one run's code did not have yet, and that the other's left empty."""
    values = difference.a, difference.b
    return ABSENT in values and any(value in ([], {}, "", None, False) for value in values)


def _diff_stage(stage: str, a: dict, b: dict) -> Iterable[Difference]:
    left, right = _facts(a), _facts(b)
    for category, key in left.keys() | right.keys():
        values = [facts.get((category, key), ABSENT) for facts in (left, right)]
        if values[0] != values[1]:
            yield Difference(category, stage, key, *values)


def _facts(manifest: dict) -> dict[tuple[str, str], Any]:
    """(category, key) -> value of everything that a manifest says but for its labels."""
    results = {
        f"{name} {key}": value
        for name, of in (("metric", "metrics"), ("criterion", "criteria"))
        for key, value in flatten(manifest.get(of, {})).items()
    }
    known = ("inputs", "outputs", "metrics", "criteria", "environment", "config", *_LABELS)
    rest = {key: value for key, value in manifest.items() if key not in known}
    found = {
        "data": {f"input {path}": facts for path, facts in manifest.get("inputs", {}).items()},
        "config": {"seed": None} | flatten(manifest.get("config", {})) | flatten(rest),
        "code": flatten(manifest.get("environment", {})),
        "outputs": manifest.get("outputs", {}) | results,
    }
    return {(category, key): value for category, of in found.items() for key, value in of.items()}


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested objects as dotted keys; an empty one within another is a value."""
    if not isinstance(value, dict) or (prefix and not value):
        return {prefix: value}
    flat = {}
    for key, inner in value.items():
        flat |= flatten(inner, f"{prefix}.{key}" if prefix else key)
    return flat


@dataclass(frozen=True)
class DifferenceGroup:
    """One difference that several stages have alike; ``stages`` in the order of the pipeline."""

    category: str
    key: str
    a: Any
    b: Any
    stages: list[str]


def folded(differences: Sequence[Difference]) -> list[DifferenceGroup]:
    """The differences that are no consequences, those alike in several stages as one, in their order."""
    groups: dict[str, DifferenceGroup] = {}
    for d in differences:
        if not d.consequence:
            # Stages that one run lacks are one group for each run, whatever they are called.
            alike = json.dumps([d.category, d.key, d.a, d.b], sort_keys=True)
            groups.setdefault(alike, DifferenceGroup(d.category, d.key, d.a, d.b, [])).stages.append(d.stage)
    return list(groups.values())


def render_diff(differences: list[Difference], name_a: str, name_b: str) -> str:
    """The differences as text: one block per category, one line for what several stages have alike.

    Of consequences each stage gets a line: how far its headline moved, and how many there are.
    """
    if not differences:
        return f"{name_a} and {name_b}: no difference (run ids aside)"
    groups = folded(differences)
    lines = [f"{name_a} -> {name_b}: {plural(len(differences), 'difference')}"]
    for category in CATEGORIES:
        block = [group for group in groups if group.category == category]
        if block:
            lines.append(category if category != "outputs" else "outputs, though nothing else of their stage")
        for group in block:
            lines.append(f"  {_line(group, name_a, name_b)}")
    follow = [d for d in differences if d.consequence]
    if follow:
        lines.append("consequences, by stage (--diff_json FILE lists them)")
        lines += [
            f"  {stage}: {_consequences([d for d in follow if d.stage == stage])}"
            for stage in sorted({d.stage for d in follow})
        ]
    return "\n".join(lines)


def _consequences(of_stage: Sequence[Difference]) -> str:
    """What follows in one stage: how far its headline moved, then how many inputs and outputs differ."""
    found = [moved for d in of_stage if (moved := _headline_moved(d))]
    kinds = Counter(_kind(d) for d in of_stage)
    return ", ".join(
        [*found, *(plural(kinds[kind], *words) for kind, words in _KINDS.items() if kinds[kind])]
    )


def _kind(difference: Difference) -> str:
    if difference.category == "data":
        return "input"
    word = difference.key.partition(" ")[0]
    return word if word in _KINDS else "output"


def _headline_moved(difference: Difference) -> str:
    """ "accuracy 50.0 % -> 25.0 % (−25.0 points)" of a stage's main share; "" for any other difference."""
    name, values = difference.key.removeprefix("metric "), (difference.a, difference.b)
    if name not in HEADLINES or not all(isinstance(value, int | float) for value in values):
        return ""
    a, b = values
    return f"{HEADLINES[name]} {percent(a)} -> {percent(b)} ({points(b - a)} points)"


def _line(group: DifferenceGroup, name_a: str, name_b: str) -> str:
    if group.category == "stages":
        return f"only in {name_a if group.b == ABSENT else name_b}: {', '.join(group.stages)}"
    named = ", ".join(group.stages[:NAMED])
    more = f" and {plural(len(group.stages) - NAMED, 'more stage')}" if len(group.stages) > NAMED else ""
    return f"{group.key}: {_show(group.a, group.b)} -> {_show(group.b, group.a)}  ({named}{more})"


def _show(value: Any, other: Any) -> str:
    """A value for print; of a file's record only what differs, its hash shortened."""
    if not isinstance(value, dict):
        return str(value)
    same = other if isinstance(other, dict) else {}
    parts = [
        f"{key} {inner[:12] if key == 'sha256' else inner}"
        for key, inner in value.items()
        if key not in same or same[key] != inner
    ]
    return ", ".join(parts)


def diff_as_json(differences: list[Difference], name_a: str, name_b: str) -> dict[str, Any]:
    """The machine-readable form: every difference, and the groups that the text shows."""
    return {
        "schema_version": 1,
        "a": name_a,
        "b": name_b,
        "differences": [asdict(difference) for difference in differences],
        "groups": [asdict(group) for group in folded(differences)],
    }


def diff_command(stage: Stage, argv: Sequence[str]) -> int:
    """``--diff RUN_A RUN_B [--diff_json FILE]`` with the frame's own options; returns the exit code.

    A run is a run id below the outputs folder, or a run's folder.
    """
    try:
        position = list(argv).index("--diff")
        names, rest = argv[position + 1 : position + 3], [*argv[:position], *argv[position + 3 :]]
        if len(names) < 2 or any(name.startswith("--") for name in names):
            raise UserError("--diff takes two runs: --diff RUN_A RUN_B")
        arguments = parse(stage, rest)
        config = resolve(stage, arguments)
        root = output_root(stage, arguments.frame, config)
        folders = [root / name if (root / name).is_dir() else resolve_path(name) for name in names]
        differences = diff_runs(*(load_manifests(folder) for folder in folders))
        print(render_diff(differences, *names))
        if config.options.diff_json:
            write_json(resolve_path(config.options.diff_json), diff_as_json(differences, *names))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
