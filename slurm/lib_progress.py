"""How far the stages of a run are, read from their folders: with SLURM or without, from any machine."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.driver.execution import duration
from utils.frame.files import UserError, read_json
from utils.frame.manifest import MANIFEST, RUNTIME
from utils.frame.pipeline import NESTED, row_of
from utils.frame.stage_plan import started

_TIME = re.compile(r"^\d{4}-\d\d-\d\dT[\d:.+Z-]+ ")


@dataclass(frozen=True)
class Progress:
    """One stage of a run.

    Attributes:
        name: its folder below the run's.
        state: "done", "begun" (running, waiting for its next start, or broken off), or "failed" (its last
            line is an error).
        step, steps: optimizer steps made at the last resume point, and in all; None where it does not train.
        starts: how often it was begun.
        said: the last line of its log.
    """

    name: str
    state: str
    step: int | None = None
    steps: int | None = None
    starts: int = 0
    said: str = ""

    def __str__(self) -> str:
        parts = [f"{self.name}: {self.state}"]
        if self.step is not None:
            parts.append(f"resume point {self.step} of {self.steps} steps")
        if self.starts > 1:
            parts.append(f"{self.starts} starts")
        return ", ".join(parts) + (f" | {self.said}" if self.said else "")


def progress_of_run(run_dir: Path) -> list[Progress]:
    """Every stage that has begun, in the order of the pipeline."""
    found = []
    for folder in sorted(run_dir.iterdir()) if run_dir.is_dir() else ():
        if row_of(folder.name) is None:
            continue
        folders = sorted(folder.iterdir()) if folder.name in NESTED else [folder]
        found += [progress_of_stage(each, run_dir) for each in folders]
    return [each for each in found if each]


def progress_of_stage(folder: Path, run_dir: Path) -> Progress | None:
    """One stage's progress; None for a folder that no stage has begun."""
    name = folder.relative_to(run_dir).as_posix()
    if (folder / MANIFEST).exists():
        runtime = _json(folder / RUNTIME)
        return Progress(
            name, "done", starts=len(runtime.get("sessions", [])), said=_finished(folder, runtime)
        )
    noted = started(folder)
    said = _last_line(folder / "stage.log")
    if not noted and not said:
        return None
    step, steps = _resume_point(folder / "resume")
    return Progress(
        name,
        "failed" if said.startswith("error: ") else "begun",
        step,
        steps,
        len(noted.get("sessions", [])),
        said,
    )


def _finished(folder: Path, runtime: dict[str, Any]) -> str:
    """How long a finished stage took, and the headline of a training or evaluation."""
    metrics = _json(folder / MANIFEST).get("metrics", {})
    seconds = runtime.get("seconds")
    parts = [] if seconds is None else [duration(seconds)]
    for key in ("final_val_accuracy", "accuracy"):
        if isinstance(metrics.get(key), float):
            parts.append(f"{key} {100 * metrics[key]:.1f} %")
    return ", ".join(parts)


def _resume_point(folder: Path) -> tuple[int | None, int | None]:
    """Steps made and steps in all at the newest complete resume point."""
    states = []
    for path in folder.glob("checkpoint-*/trainer_state.json"):
        try:
            states.append(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            continue  # being written, or replaced
    if not states:
        return None, None
    newest = max(states, key=lambda state: state["global_step"])
    return newest["global_step"], newest["max_steps"]


def _last_line(path: Path) -> str:
    """The last line that a stage wrote to its log, without the time."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return ""
    return _TIME.sub("", lines[-1]) if lines else ""


def _json(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except UserError:
        return {}
