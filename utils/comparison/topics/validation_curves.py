"""Validation during training against the completions sampled so far, from the stages' own logs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from utils.comparison.lineage import Trained
from utils.comparison.topic import Comparison, Topic
from utils.documents.document import Figure, Paragraph, Section
from utils.documents.figures import Style, drawing, legend, mark
from utils.documents.text import listed
from utils.frame.files import UserError, read_jsonl, shown, write_csv
from utils.frame.pipeline import counts_cost, samples_while_training

CURVES, TABLE = "curves.png", "curves.csv"
COLUMNS = ["method", "seed", "step", "sampled_completions", "val_reward", "val_accuracy"]
_WORDS = {"level": " (best checkpoint)", "bar": " (all sampled before; bar: during training)"}


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
            if [] in by_run:
                left_out[name] = f"as {of_policy[by_run.index([])].training} did not validate"
                continue
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
    return Curve(name, "line" if samples_while_training(trained.training) else "bar", by_run)


def _points(trained: Trained) -> list[Point] | None:
    """The validations in a training log, [] for none; None where they cannot be placed."""
    before = _sampled_before(trained)
    points = []
    for row in read_jsonl(trained.log):
        if "val_reward" not in row:
            continue
        if samples_while_training(trained.training) and "sampled_completions" not in row:
            return None
        points.append(read_point(row, before, trained.log))
    return points if before is not None or not points else None


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
        if stage != trained.training and counts_cost(stage):
            count = manifest.get("metrics", {}).get("cost", {}).get("sampled_completions")
            if count is None:
                return None
            total += count
    return total


# --------------------------------------------------------------------------------------------- topic


def topic(comparison: Comparison) -> Topic:
    """Every validation in curves.csv, and the curves of the methods that validate while they train."""
    curves, left_out = curves_of(comparison)
    rows = [
        {"method": curve.policy, "seed": each.seed, **vars(point)}
        for curve in curves
        for each, points in zip(comparison.trained[curve.policy], curve.by_run, strict=True)
        for point in points
    ]
    files = {TABLE: lambda path: write_csv(path, rows, COLUMNS)}
    figure = None
    if any(curve.kind != "level" for curve in curves):
        figure = Figure(CURVES, "Validation against sampled completions")
        files[CURVES] = partial(plot_curves, curves, comparison.styles)
    return Topic([Section("Training", [figure, Paragraph(curves_note(curves, left_out))])], files=files)


@lru_cache(maxsize=1)
def curves_of(comparison: Comparison) -> tuple[list[Curve], dict[str, str]]:
    """``read_curves`` of the compared policies."""
    return read_curves(comparison.trained)


def curves_note(curves: Sequence[Curve], left_out: Mapping[str, str]) -> str:
    """What the figure of the curves shows, and which policies are not in it."""
    lines = []
    kinds = {
        kind: [curve.policy for curve in curves if curve.kind == kind] for kind in ("line", "bar", "level")
    }
    if kinds["line"] or kinds["bar"]:
        runs = max(len(curve.by_run) for curve in curves)
        lines.append(
            "Greedy answers to validation items during training; the reward is the task's verified reward, "
            "whatever a method is trained on."
        )
        if runs > 1:
            lines.append(f"Mean over {runs} seeds; a band reaches from the lowest seed to the highest.")
        if kinds["bar"]:
            lines.append(
                f"{listed(kinds['bar'])} had all completions sampled before training: the marker is its last "
                "validation, the bar reaches from the lowest to the highest of its training"
                f"{', over all seeds' if runs > 1 else ''}."
            )
        partly = [curve.policy for curve in curves if curve.kind == "line" and not curve.complete]
        if partly:
            lines.append(f"Of {listed(partly)}, validations that not every seed has are not drawn.")
        if kinds["level"]:
            lines.append(f"Dashed: {listed(kinds['level'])}, best checkpoint.")
    lines += [f"Not shown: {name}, {reason}." for name, reason in left_out.items()]
    return " ".join(lines)


# ------------------------------------------------------------------------------------------- figure


def plot_curves(curves: Sequence[Curve], styles: Mapping[str, Style], path: Path) -> None:
    """Validation accuracy and reward against sampled completions; bands from lowest to highest seed.

    ``styles`` are of all policies that the comparison draws elsewhere, so that each has one.
    """
    with drawing(path, (11, 4.6), (1, 1)) as (figure, axes):
        panels = (("val_accuracy", 100, "Validation accuracy (%)"), ("val_reward", 1, "Validation reward"))
        for axis, (key, scale, label) in zip(axes, panels, strict=True):
            for curve in sorted(curves, key=lambda curve: curve.kind == "bar"):
                draw_curve(axis, curve, key, scale, styles[curve.policy])
            finish_curves(axis, label, curves)
        shown = dict(zip(*reversed(axes[0].get_legend_handles_labels()), strict=True))
        words = {curve.policy: _WORDS.get(curve.kind, "") for curve in curves}
        names = [name for name in styles if name in shown]
        legend(figure, [shown[name] for name in names], [name + words[name] for name in names])


def finish_curves(axis, title: str, curves: Sequence[Curve]) -> None:
    """Axes of a panel of curves; the title says what lines and bands are where there are several runs."""
    runs = max((len(curve.by_run) for curve in curves), default=1)
    axis.set(xlabel="sampled completions", title=title + (f", mean and range of {runs} seeds" * (runs > 1)))
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.set_xlim(left=0)
    axis.grid()


def draw_curve(axis, curve: Curve, key: str, scale: float, style: Style) -> None:
    """Draw one method's validations, labelled with its name; ``key`` is a field of Point, times ``scale``."""
    by_run = [[scale * getattr(point, key) for point in points] for points in curve.by_run]
    line = {"color": style.colour, "label": curve.policy}
    if curve.kind == "level":
        axis.axhline(fmean(values[0] for values in by_run), linestyle="--", linewidth=1.5, **line)
    elif curve.kind == "bar":
        every = [value for values in by_run for value in values]
        last = fmean(values[-1] for values in by_run)
        x = fmean(points[-1].sampled_completions for points in curve.by_run)
        reach = [[max(0.0, last - min(every))], [max(0.0, max(every) - last)]]
        mark(axis, x, last, style, yerr=reach, markersize=10, label=curve.policy)
    else:
        shared = curve.shared()
        x = [points[0].sampled_completions for points in shared]
        values = [[scale * getattr(point, key) for point in points] for points in shared]
        if len(by_run) > 1:
            ends = list(map(min, values)), list(map(max, values))
            axis.fill_between(x, *ends, color=style.colour, alpha=0.15, linewidth=0)
        axis.plot(x, list(map(fmean, values)), marker=style.marker, markersize=5, linewidth=2, **line)
