"""How steadily a method trained and when it had converged, from the log of its training."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from utils.comparison.lineage import Trained
from utils.comparison.topics.curves import SAMPLING, Point, read_point
from utils.comparison.topics.number import Measured, over_runs, with_measured
from utils.documents.text import listed, markdown_table
from utils.frame.files import read_jsonl
from utils.training.health.health_rules import findings
from utils.training.health.log_curves import STRETCH

PLATEAU = 0.75  # validations from this share of the steps on are the plateau's
RISE = 0.95  # share of the way from the first validation to the plateau that counts as converged
LATE = 0.5  # rows from this share of the log on are late
LOOK = 10  # logged rows between two looks at the log's health, as while training
SPIKE = 10.0  # times the median of the gradient norms before, as the rule of training health has it


@dataclass(frozen=True)
class Training:
    """One training; None where its log does not say, or where there is no such thing.

    Attributes:
        plateau_val_accuracy: mean validation accuracy over the last quarter of the steps.
        steps_to_plateau: optimizer steps until 95 % of the way from the first validation to the plateau,
            linear between validations; None where the plateau is not above the first validation.
        completions_to_plateau: the same in sampled completions, where a method samples while it trains.
        best_val_step: step of the validation with the highest reward, the first of several.
        max_drawdown: largest fall of the validation accuracy below the highest before, a share of items.
        final_drop: highest validation accuracy less the last one.
        late_train_accuracy_sd: spread of the rollouts' accuracy about its own straight line, over the second
            half of the log.
        late_reward_sd: the same of the reward that is trained on, in its own unit.
        gradient_spikes: share of gradient norms above 10 times the median of the 20 logs before.
        warned_share: share of looks at the log, one every 10 rows, at which a health rule finds something.
        health: names of the rules that find something in the whole log.
    """

    plateau_val_accuracy: float | None = None
    steps_to_plateau: float | None = None
    completions_to_plateau: float | None = None
    best_val_step: float | None = None
    max_drawdown: float | None = None
    final_drop: float | None = None
    late_train_accuracy_sd: float | None = None
    late_reward_sd: float | None = None
    gradient_spikes: float | None = None
    warned_share: float | None = None
    health: tuple[str, ...] | None = None


NUMBERS = [field.name for field in fields(Training) if field.name != "health"]
_SHARES = ("plateau_val_accuracy", "max_drawdown", "final_drop", "gradient_spikes", "warned_share")

Trainings = dict[str, list[Training]]  # policy -> one per run


def trainings_of(trained: Mapping[str, Sequence[Trained]]) -> Trainings:
    """The trainings of all policies that have a log in every run; of several checkpoints, the first named.

    Raises UserError naming the file where a log is damaged.
    """
    found: Trainings = {}
    seen: set[tuple[Path | None, ...]] = set()
    for name, of_policy in trained.items():
        logs = tuple(each.log for each in of_policy)
        if None not in logs and logs not in seen:
            seen.add(logs)
            found[name] = [training_of(each) for each in of_policy]
    return found


def training_of(trained: Trained) -> Training:
    """Measure one training by its log."""
    rows = read_jsonl(trained.log)
    points = [read_point(row, 0, trained.log) for row in rows if "val_reward" in row]
    trained_on = [row for row in rows if "val_reward" not in row]
    return Training(
        **_of_validations(points, trained.training.startswith(SAMPLING)),
        late_train_accuracy_sd=late_spread(*_values(trained_on, "train_accuracy")),
        late_reward_sd=late_spread(*_values(trained_on, "reward")),
        gradient_spikes=_spikes(_values(trained_on, "grad_norm")[1]),
        **_health(rows),
    )


def _of_validations(points: Sequence[Point], sampling: bool) -> dict[str, float | None]:
    if len(points) < 2:
        return {}
    accuracies = [point.val_accuracy for point in points]
    end = points[-1].step
    level = float(np.mean([point.val_accuracy for point in points if point.step >= PLATEAU * end]))
    steps = crossing([point.step for point in points], accuracies, RISE)
    sampled = crossing([point.sampled_completions for point in points], accuracies, RISE)
    return {
        "plateau_val_accuracy": level,
        "steps_to_plateau": steps,
        "completions_to_plateau": sampled if sampling else None,
        "best_val_step": float(max(points, key=lambda point: (point.val_reward, -point.step)).step),
        "max_drawdown": round(float(np.max(np.maximum.accumulate(accuracies) - accuracies)), 9),
        "final_drop": round(max(accuracies) - accuracies[-1], 9),
    }


def crossing(x: Sequence[float], y: Sequence[float], share: float) -> float | None:
    """Where y first has gone ``share`` of its way from y[0] to its plateau, linear between the points.

    The plateau is the mean of y over the last quarter of x. None where it is not above y[0].
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    rise = float(np.mean(y[x >= PLATEAU * x[-1]]) - y[0])
    if rise <= 1e-9:
        return None
    target = y[0] + share * rise
    after = int(np.argmax(y >= target - 1e-12))  # the plateau's mean is above it, so some point is
    part = (target - y[after - 1]) / (y[after] - y[after - 1])
    return float(x[after - 1] + min(1.0, part) * (x[after] - x[after - 1]))


def late_spread(steps: Sequence[float], values: Sequence[float]) -> float | None:
    """Standard deviation about the least-squares line (n - 2 degrees of freedom) of the later half.

    None for fewer than four late values.
    """
    start = int(LATE * len(values))
    x, y = np.asarray(steps[start:], dtype=float), np.asarray(values[start:], dtype=float)
    if len(y) < 4:
        return None
    residuals = y - np.polyval(np.polyfit(x - x.mean(), y, 1), x - x.mean())
    return float(math.sqrt(residuals @ residuals / (len(y) - 2)))


def _spikes(norms: Sequence[float]) -> float | None:
    if len(norms) < 2 * STRETCH:
        return None
    norms = np.asarray(norms, dtype=float)
    before = np.median(np.lib.stride_tricks.sliding_window_view(norms, STRETCH)[:-1], axis=1)
    return float(np.mean(norms[STRETCH:] > SPIKE * np.maximum(before, 1e-12)))


def _values(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Steps and finite values of a key; others are what the rule ``non_finite`` is for."""
    found = [(row["step"], row[key]) for row in rows if isinstance(row.get(key), (int, float))]
    found = [(float(step), float(value)) for step, value in found if math.isfinite(value)]
    return [step for step, _ in found], [value for _, value in found]


def _health(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the rules of training health find in the whole log, and at how many of the looks at it."""
    if not rows:
        return {}
    found = tuple(dict.fromkeys(finding.name for finding in findings(rows)))
    ends = range(LOOK, len(rows), LOOK)
    looks = [bool(findings(rows[:end])) for end in ends] + [bool(found)]
    return {"warned_share": float(np.mean(looks)), "health": found}


# -------------------------------------------------------------------------------------- over the runs


def mean_of(trainings: Sequence[Training], name: str) -> Measured | None:
    """Mean and t interval over the runs, cut at 0 and for shares at 1; None where any run lacks it."""
    values = [getattr(training, name) for training in trainings]
    if None in values:
        return None
    return over_runs([{"value": value} for value in values], (0.0, 1.0 if name in _SHARES else math.inf))


def with_training(
    rows: Sequence[dict[str, Any]], columns: Sequence[str], trainings: Trainings
) -> tuple[list, list]:
    """Rows and columns of summary.csv with every number of Training (means over the runs) and its interval.

    ``health_findings`` names the rules that found something in any run. No columns where no log was read.
    """
    if not trainings:
        return list(rows), list(columns)

    def of_policy(policy: str) -> dict[str, Measured | None]:
        return {name: mean_of(trainings[policy], name) for name in NUMBERS} if policy in trainings else {}

    filled, columns = with_measured(rows, columns, NUMBERS, of_policy)
    found = [{"health_findings": " ".join(_counted(trainings.get(row["policy"], ())))} for row in filled]
    return [row | more for row, more in zip(filled, found, strict=True)], [*columns, "health_findings"]


def with_training_by_run(
    rows: Sequence[dict[str, Any]], columns: Sequence[str], trainings: Trainings
) -> tuple[list, list]:
    """Rows of by_seed.csv, policy by policy and run by run, with the numbers of each training."""
    if not trainings:
        return list(rows), list(columns)
    place: Counter[str] = Counter()
    filled = []
    for row in rows:
        of_policy = trainings.get(row["policy"])
        each = of_policy[place[row["policy"]]] if of_policy else Training()
        place[row["policy"]] += 1
        cells = {name: getattr(each, name) for name in NUMBERS}
        cells = {name: "" if value is None else value for name, value in cells.items()}
        filled.append(row | cells | {"health_findings": " ".join(each.health or ())})
    return filled, [*columns, *NUMBERS, "health_findings"]


def _counted(trainings: Sequence[Training]) -> Counter[str]:
    """Rule -> runs in whose logs it finds something."""
    return Counter(name for training in trainings for name in training.health or ())


def training_section(trainings: Trainings) -> str:
    """The report's section on stability and convergence, "" where no log was read."""
    if not trainings:
        return ""
    runs = max(map(len, trainings.values()))
    heads = ["method", "plateau", "steps to it", "completions to it", "best at step", "largest fall"]
    heads += ["last below best", "late spread: accuracy", "late spread: reward", "looks with a warning"]
    shown = ("plateau_val_accuracy", "steps_to_plateau", "completions_to_plateau", "best_val_step")
    shown += ("max_drawdown", "final_drop", "late_train_accuracy_sd", "late_reward_sd", "warned_share")
    rows = [[name, *(_cell(of_policy, number) for number in shown)] for name, of_policy in trainings.items()]
    note = (
        "From the logs of training. *Plateau*: mean validation accuracy over the last quarter of the steps; "
        f"*to it*: until {100 * RISE:.0f} % of the way from the first validation, linear between validations "
        "(so as coarse as validation is). *Largest fall*: of the validation accuracy below the highest "
        "before; validation sets are small, and a fall of a few points can be chance. "
        "*Late spread*: standard deviation of the rollouts' accuracy and trained reward about their own line "
        "over the second half; rewards that were trained on differ between variants. *Warning*: share of "
        f"looks at the log, one every {LOOK} rows, at which a rule of training health finds something."
    )
    if runs > 1:
        note += f" Means over {runs} seeds; a bracket has the lowest and the highest seed."
    parts = ["## Stability and convergence", note, markdown_table(heads, rows), _warnings(trainings)]
    return "\n\n".join(part for part in parts if part)


def _cell(trainings: Sequence[Training], name: str) -> str:
    values = [getattr(training, name) for training in trainings]
    if None in values:
        return "–"

    def text(value: float) -> str:
        if name in _SHARES or name.startswith("late_train"):
            return f"{100 * value:.1f}"
        return f"{value:.3g}" if name == "late_reward_sd" else f"{value:,.0f}"

    mean = text(float(np.mean(values)))
    unit = " %" if name in (*_SHARES, "late_train_accuracy_sd") else ""
    return mean + unit + (f" [{text(min(values))}–{text(max(values))}]" if len(values) > 1 else "")


def _warnings(trainings: Trainings) -> str:
    """What the rules found in whole logs, and where they found nothing."""
    lines = []
    for name, of_policy in trainings.items():
        found = [
            rule.replace("_", " ") + (f" ({count} of {len(of_policy)} seeds)" if len(of_policy) > 1 else "")
            for rule, count in _counted(of_policy).items()
        ]
        if found:
            lines.append(f"- {name}: {listed(found)}.")
    quiet = [name for name, of_policy in trainings.items() if not _counted(of_policy)]
    if quiet:
        lines.append(f"- Nothing is found in the whole log of {listed(quiet)}.")
    return "\n".join(lines)
