"""Validation during training against the completions sampled so far, from the stages' own logs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from utils.comparison.lineage import Trained
from utils.comparison.topics.cost import WITHOUT_COST
from utils.frame.files import UserError, read_jsonl, shown

COLUMNS = ["method", "seed", "step", "sampled_completions", "val_reward", "val_accuracy"]
# Stages that sample while they train; their logs say how far they have come.
SAMPLING = ("03_distill", "05_", "06_", "07_")


@dataclass(frozen=True)
class Point:
    """One validation: optimizer step, completions sampled by then, mean reward, share answered correctly."""

    step: int
    sampled_completions: int
    val_reward: float
    val_accuracy: float


@dataclass(frozen=True)
class Curve:
    """The validations of one method in every run.

    ``kind`` is how it is drawn: "line" where completions are sampled during training, "bar" where all are
    sampled before it, "level" where none are, as in SFT (a single point: its best checkpoint's).
    """

    policy: str
    kind: Literal["line", "bar", "level"]
    by_run: list[list[Point]]

    @property
    def complete(self) -> bool:
        """Whether all runs have validated at the same numbers of completions."""
        return len({tuple(point.sampled_completions for point in points) for points in self.by_run}) == 1

    def shared(self) -> list[list[Point]]:
        """Points of every run at the numbers of completions that all runs have validated at: [x][run]."""
        places = [{point.sampled_completions: point for point in points} for points in self.by_run]
        common = sorted(set.intersection(*(set(place) for place in places)))
        return [[place[x] for place in places] for x in common]


def read_curves(trained: Mapping[str, Sequence[Trained]]) -> tuple[list[Curve], dict[str, str]]:
    """The curves of all policies that have any, and policy -> why for the others.

    Raises UserError naming the file where a log is damaged.
    """
    curves: list[Curve] = []
    left_out: dict[str, str] = {}
    drawn: dict[tuple[Path, ...], str] = {}
    for name, of_policy in trained.items():
        logs = [each.log for each in of_policy]
        if not all(each.training for each in of_policy):
            left_out[name] = "which was not trained in its run"
        elif None in logs:
            left_out[name] = f"whose {of_policy[logs.index(None)].training} has no log"
        elif tuple(logs) in drawn:
            left_out[name] = f"which is a checkpoint of the training shown as {drawn[tuple(logs)]}"
        else:
            by_run = [_points(each) for each in of_policy]
            if None in by_run:
                training = of_policy[by_run.index(None)].training
                left_out[name] = f"as the log of {training} does not say how many completions were sampled"
                continue
            drawn[tuple(logs)] = name
            curves.append(_curve(name, of_policy[0], by_run))
    return curves, left_out


def _curve(name: str, trained: Trained, by_run: list[list[Point]]) -> Curve:
    if not any(point.sampled_completions for points in by_run for point in points):
        best = [max(points, key=lambda point: (point.val_reward, -point.step)) for points in by_run]
        return Curve(name, "level", [[point] for point in best])
    return Curve(name, "line" if trained.training.startswith(SAMPLING) else "bar", by_run)


def _points(trained: Trained) -> list[Point] | None:
    """The validations in a training log; None where they cannot be placed."""
    before = _sampled_before(trained)
    points = []
    for row in read_jsonl(trained.log):
        if "val_reward" not in row:
            continue
        if trained.training.startswith(SAMPLING) and "sampled_completions" not in row:
            return None
        points.append(read_point(row, before, trained.log))
    return points if points and before is not None else None


def read_point(row: dict[str, Any], before: int | None, log: Path) -> Point:
    """One validation of a log, ``before`` completions having been sampled earlier.

    Raises UserError naming the file where a value is missing or not finite.
    """
    try:
        values = [float(row[key]) for key in ("val_reward", "val_accuracy")]
        if not all(map(math.isfinite, values)):
            raise ValueError(f"not finite: {values}")
        return Point(row["step"], (before or 0) + row.get("sampled_completions", 0), *values)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{shown(log)}: a validation row cannot be read ({error}); redo the stage") from None


def _sampled_before(trained: Trained) -> int | None:
    """Completions that earlier stages sampled for this training, None where they did not count."""
    total = 0
    for stage, manifest in trained.stages.items():
        if stage != trained.training and not stage.startswith(WITHOUT_COST):
            count = manifest.get("metrics", {}).get("cost", {}).get("sampled_completions")
            if count is None:
                return None
            total += count
    return total


def curve_rows(curves: Sequence[Curve], trained: Mapping[str, Sequence[Trained]]) -> list[dict[str, Any]]:
    """Rows of curves.csv: every validation of every curve."""
    return [
        {"method": curve.policy, "seed": each.seed, **vars(point)}
        for curve in curves
        for each, points in zip(trained[curve.policy], curve.by_run, strict=True)
        for point in points
    ]
