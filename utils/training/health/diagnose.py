"""``--diagnose DIR``: what a training folder's log says is healthy, and what is not."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from utils.frame.files import UserError, read_json, read_jsonl, resolve_path, shown, write_json
from utils.frame.manifest import RESUME
from utils.training.health.health_rules import Check, checks

USAGE = "--diagnose takes one training folder: --diagnose DIR [--json FILE]"
_STEP_NAMES = ("step", "global_step", "_step")


@dataclass(frozen=True)
class TrainingLog:
    """A log found in a training folder.

    Attributes:
        source: the file.
        rows: a dict per log, each with ``step``.
        state: "finished", or what is known of how far it has come.
    """

    source: Path
    rows: list[dict[str, Any]]
    state: str


def load_log(folder: Path) -> TrainingLog:
    """The log of a training folder, or of a file: ``logs/metrics.jsonl`` of a finished stage, the latest
    resume point's history of an interrupted one, or what other tools leave (``metrics.jsonl``,
    ``trainer_state.json``, ``checkpoint-*/trainer_state.json``).

    Raises UserError where there is no such folder, or no log in it.
    """
    if not folder.exists():
        raise UserError(
            f"{shown(folder)}: no such folder; give a training stage's, as outputs/run_001/05_ppo"
        )
    candidates = [folder] if folder.is_file() else [*_files(folder)]
    for source in candidates:
        rows, state = _read(source)
        if rows:
            return TrainingLog(source, rows, state)
    stages = [] if folder.is_file() else sorted(path.name for path in folder.iterdir() if _holds_log(path))
    if stages:
        raise UserError(f"{shown(folder)} holds trainings ({', '.join(stages)}): give one of them")
    raise UserError(
        f"{shown(folder)}: no training log with a row in it (looked for logs/metrics.jsonl, metrics.jsonl, "
        "trainer_state.json and checkpoint-*/trainer_state.json)"
    )


def _files(folder: Path) -> list[Path]:
    """The files of a folder that may hold its log, best first."""
    points = [point for place in (folder / RESUME, folder) for point in place.glob("checkpoint-*")]
    points = [point for point in points if point.name.rpartition("-")[2].isdigit()]
    points.sort(key=lambda point: int(point.name.rpartition("-")[2]), reverse=True)
    named = [folder / "logs" / "metrics.jsonl", folder / "metrics.jsonl", folder / "trainer_state.json"]
    return [file for file in (*named, *(point / "trainer_state.json" for point in points)) if file.is_file()]


def _holds_log(path: Path) -> bool:
    return path.is_dir() and bool(_files(path))


def _read(source: Path) -> tuple[list[dict[str, Any]], str]:
    if source.suffix == ".jsonl":
        whole = (source.parent.parent / "manifest.json").is_file()
        return _rows(read_jsonl(source)), "finished" if whole else "without a manifest"
    # Transformers writes NaN and infinity into its state, which json reads.
    state = read_json(source)
    if not isinstance(state, dict) or not isinstance(state.get("log_history"), list):
        raise UserError(f"{shown(source)}: not a trainer's state (no log_history)")
    done, goal = state.get("global_step"), state.get("max_steps")
    finished = done is not None and done == goal
    return _rows(state["log_history"]), "finished" if finished else f"interrupted after step {done} of {goal}"


def _rows(logged: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with a ``step`` (their number where none is logged), "train/" of trackers' keys removed."""
    rows = []
    for number, row in enumerate(logged):
        if not isinstance(row, dict):
            continue
        row = {key.removeprefix("train/"): value for key, value in row.items()}
        step = next((row[name] for name in _STEP_NAMES if isinstance(row.get(name), (int, float))), number)
        if set(row) - {*_STEP_NAMES, "epoch"}:
            rows.append(row | {"step": step})
    return rows


def diagnose_command(argv: Sequence[str]) -> int:
    """``--diagnose DIR [--json FILE]``: print what is healthy and what is not.

    Returns the exit code: 0 healthy, 1 problems found, 2 a user's mistake.
    """
    try:
        folder, file = _arguments(argv)
        log = load_log(resolve_path(folder))
        found = checks(log.rows)
        if not any(check.judged for check in found):
            raise UserError(f"{shown(log.source)}: too few logs, or none of the keys that can be judged")
        if file:
            write_json(resolve_path(file), as_json(log, found))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    _print(log, found)
    return 1 if any(check.finding for check in found) else 0


def _arguments(words: Sequence[str]) -> tuple[str, str | None]:
    """The folder, and the file for --json or None."""
    parts = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
    given = dict(zip(parts[::2], parts[1::2], strict=False))
    if (
        len(parts) != 2 * len(given)
        or not all(given.values())
        or set(given) | {"--json"} != {"--diagnose", "--json"}
    ):
        raise UserError(USAGE)
    return given["--diagnose"], given.get("--json")


def as_json(log: TrainingLog, found: Sequence[Check]) -> dict[str, Any]:
    """``{"schema_version", "state", "first_step", "last_step", "logs", "healthy", "checks"}``."""
    steps = [row["step"] for row in log.rows]
    return {
        "schema_version": 1,
        "state": log.state,
        "first_step": min(steps),
        "last_step": max(steps),
        "logs": len(log.rows),
        "healthy": not any(check.finding for check in found),
        "checks": [asdict(check) for check in found],
    }


def _print(log: TrainingLog, found: Sequence[Check]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    steps = [row["step"] for row in log.rows]
    console = Console(width=None if sys.stdout.isatty() else 110, highlight=False)
    title = f"{shown(log.source)}: {log.state}, {len(log.rows)} logs, steps {min(steps):g} to {max(steps):g}"
    console.print(title, markup=False)
    table = Table()
    for column in ("check", "", "figures"):
        table.add_column(column, no_wrap=column == "")
    colours = {"serious": "red", "warning": "yellow"}
    for check in found:
        severity = check.finding.severity if check.finding else None
        fine = "[green]ok[/]" if check.judged else "[dim]too few[/]"
        verdict = f"[{colours[severity]}]{severity}[/]" if severity else fine
        table.add_row(check.name.replace("_", " "), verdict, escape(check.figures))
    console.print(table)
    problems = [check.finding for check in found if check.finding]
    for finding in problems:
        console.print(f"[{colours[finding.severity]}]{finding.severity}[/]: {escape(finding.message)}.")
        console.print(f"  try: {escape(finding.remedy)}")
    judged = sum(check.judged for check in found)
    last = f"{len(problems)} problem{'s' * (len(problems) > 1)}" if problems else "healthy"
    few = f"; {len(found) - judged} had too few rows to tell" if judged < len(found) else ""
    rules = f"{judged} rule{'s' * (judged != 1)}"
    console.print(f"{last} by {rules}{few}; others need keys that this log does not have")
