"""What differs between the manifests of two runs, most consequential first.

Data come before configuration, configuration before code, code before outputs: an output differs because
something above it does, so the first lines are the ones to read. Stages are in the order of the pipeline.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from utils.cli import output_root, parse, resolve
from utils.common import UserError, read_json, resolve_path, write_json
from utils.stage import Stage

CATEGORIES = ("stages", "data", "config", "code", "outputs")
ABSENT = "(absent)"
_LABELS = ("schema_version", "stage", "variant", "run_id")


@dataclass(frozen=True)
class Difference:
    """One value that differs: in which stage folder, under which key, and what each run has there."""

    category: str
    stage: str
    key: str
    a: Any
    b: Any


def load_manifests(run: Path) -> dict[str, dict]:
    """Stage folder relative to the run -> its manifest.

    Raises UserError where the folder does not exist or holds no finished stage.
    """
    if not run.is_dir():
        raise UserError(f"no run at {run}; give a run id under --output_dir, or the run's folder")
    found = sorted(path for path in run.rglob("manifest.json") if ".in_progress" not in path.parts)
    if not found:
        raise UserError(f"{run}: no finished stage (no manifest.json below it)")
    return {path.parent.relative_to(run).as_posix(): read_json(path) for path in found}


def diff_runs(a: dict[str, dict], b: dict[str, dict]) -> list[Difference]:
    """All differences between two runs' manifests; run ids are labels and never count."""
    found = []
    for stage in sorted(set(a) | set(b)):
        if stage not in a or stage not in b:
            present = ("finished", ABSENT) if stage in a else (ABSENT, "finished")
            found.append(Difference("stages", stage, "", *present))
        else:
            found.extend(_diff_stage(stage, a[stage], b[stage]))
    return sorted(found, key=lambda d: (CATEGORIES.index(d.category), _inherited(d, a), d.stage))


def _diff_stage(stage: str, a: dict, b: dict) -> Iterable[Difference]:
    sections = (
        ("data", "inputs", "input "),
        ("config", "config", ""),
        ("code", "environment", ""),
        ("outputs", "outputs", ""),
        ("outputs", "metrics", "metric "),
    )
    flat_a, flat_b = {"config": {"seed": a.get("seed")}}, {"config": {"seed": b.get("seed")}}
    for flat, manifest in ((flat_a, a), (flat_b, b)):
        for _, section, _ in sections:
            depth = 1 if section in ("inputs", "outputs") else None
            flat[section] = flat.get(section, {}) | _flatten(manifest.get(section, {}), depth=depth)
        known = {section for _, section, _ in sections} | {*_LABELS, "seed"}
        flat["config"] |= _flatten({key: value for key, value in manifest.items() if key not in known})
    for category, section, prefix in sections:
        for key in sorted(set(flat_a[section]) | set(flat_b[section])):
            left, right = flat_a[section].get(key, ABSENT), flat_b[section].get(key, ABSENT)
            if left != right:
                yield Difference(category, stage, prefix + key, left, right)


def _flatten(value: Any, prefix: str = "", depth: int | None = None) -> dict[str, Any]:
    """Nested objects as dotted keys, down to ``depth`` levels (None: to the leaves)."""
    if not isinstance(value, dict) or depth == 0 or (prefix and not value):
        return {prefix: value}
    flat = {}
    for key, inner in value.items():
        flat |= _flatten(inner, f"{prefix}.{key}" if prefix else key, None if depth is None else depth - 1)
    return flat


def _inherited(difference: Difference, manifests: dict[str, dict]) -> bool:
    """Whether a differing input was written by an earlier stage of the run, and so is a consequence."""
    path = difference.key.removeprefix("input ")
    return difference.category == "data" and any(path.startswith(stage + "/") for stage in manifests)


def render_diff(differences: list[Difference], name_a: str, name_b: str) -> str:
    """The differences as text, one block per category and one line each."""
    if not differences:
        return f"{name_a} and {name_b}: no difference (run ids aside)"
    count = len(differences)
    lines = [f"{name_a} -> {name_b}: {count} {'difference' if count == 1 else 'differences'}"]
    width = max(len(d.stage) for d in differences)
    for category in CATEGORIES:
        block = [d for d in differences if d.category == category]
        if block:
            lines.append(category)
        for d in block:
            label = f"{d.key}: " if d.key else ""
            lines.append(f"  {d.stage:<{width}}  {label}{_show(d.a, d.b)} -> {_show(d.b, d.a)}")
    return "\n".join(lines)


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
    """The machine-readable form: ``{"schema_version", "a", "b", "differences": [...]}``."""
    rows = [asdict(difference) for difference in differences]
    return {"schema_version": 1, "a": name_a, "b": name_b, "differences": rows}


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
