"""How steadily a method trained and when it had converged, from the log of its training."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils.comparison.estimates import Estimate, columns_of, over_runs
from utils.comparison.lineage import Trained
from utils.comparison.topic import Comparison, Topic
from utils.comparison.topics.validation_curves import Point, read_point
from utils.documents.document import Bullets, Number, Paragraph, Section, Table, emphasis, sentence
from utils.documents.text import listed
from utils.frame.files import read_jsonl
from utils.frame.pipeline import samples_while_training
from utils.training.health.health_rules import all_warm_up, findings
from utils.training.health.log_curves import STRETCH, History, LogCurve

PLATEAU = 0.75  # validations from this share of the steps on are the plateau's
RISE = 0.95  # share of the way from the first validation to the plateau that counts as converged
LATE = 0.5  # rows from this share of the log on are late
LOOK = 10  # logged rows between two looks at the log's health, as while training
SPIKE = 10.0  # times the median of the gradient norms before, as the rule of training health has it

# What is measured of a training: the head of its column in the report ("": none there), and what it is.
NUMBERS = {
    # Mean validation accuracy over the last quarter of the steps.
    "plateau_val_accuracy": ("plateau", "share"),
    # Optimizer steps until 95 % of the way from the first validation to the plateau, linear between
    # validations; none where the plateau is not above the first validation.
    "steps_to_plateau": ("steps to it", "count"),
    # The same in sampled completions, where a method samples while it trains.
    "completions_to_plateau": ("completions to it", "count"),
    # Step of the validation with the highest reward, the first of several.
    "best_val_step": ("best at step", "count"),
    # Largest fall of the validation accuracy below the highest before; highest less last.
    "max_drawdown": ("largest fall", "share"),
    "final_drop": ("last below best", "share"),
    # Spread about their own straight line, over the second half of the log, of the rollouts' accuracy and of
    # the reward that is trained on (in its own unit).
    "late_train_accuracy_sd": ("late spread: accuracy", "spread"),
    "late_reward_sd": ("late spread: reward", "number"),
    # Mean over the second half of the log of the advantages' share in groups all right or all wrong.
    "phantom_advantage": ("phantom advantage", "share"),
    # Share of gradient norms above 10 times the median of the 20 logs before.
    "gradient_spikes": ("", "share"),
    # Share of looks at the log, one every 10 rows, at which a health rule finds something.
    "warned_share": ("looks with a warning", "share"),
}
HEALTH = "health_findings"  # the names of the rules that find something in the whole log
ALL_WARM_UP = "warm_up_longer_than_training"

Training = Mapping[str, Any]  # NUMBERS and HEALTH of one training, None where its log does not say
Trainings = Mapping[str, Sequence[Training]]  # policy -> one per run


def topic(comparison: Comparison) -> Topic:
    """A row per method that has a log in every run, and what the logs warn of; nothing without any log."""
    return topic_of(trainings_of(comparison.trained))


def topic_of(trainings: Trainings) -> Topic:
    """What is said of trainings that were read."""
    if not trainings:
        return Topic()
    columns = {
        name: columns_of({number: mean_of(of_policy, number) for number in NUMBERS})
        | {HEALTH: " ".join(_warned(of_policy))}
        for name, of_policy in trainings.items()
    }
    return Topic([training_section(trainings)], columns, by_run=trainings)


def trainings_of(trained: Mapping[str, Sequence[Trained]]) -> dict[str, list[Training]]:
    """The trainings of all policies that have a log in every run; of several checkpoints, the first named.

    Raises UserError naming the file where a log is damaged.
    """
    found: dict[str, list[Training]] = {}
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
    log = History([row for row in rows if "val_reward" not in row])
    accuracy, reward = log.curve("train_accuracy"), log.curve("reward")
    config = trained.stages[trained.training].get("config", {})
    warm_up = config.get("algo", {}).get("warmup_steps", 0)
    found = _of_validations(points, samples_while_training(trained.training)) | _health(rows, warm_up)
    found |= {
        "late_train_accuracy_sd": late_spread(accuracy.steps, accuracy.values),
        "late_reward_sd": late_spread(reward.steps, reward.values),
        "phantom_advantage": _late_mean(log.curve("advantages/phantom").values),
        "gradient_spikes": _spikes(log.curve("grad_norm")),
    }
    return {name: found.get(name) for name in (*NUMBERS, HEALTH)}


def _of_validations(points: Sequence[Point], sampling: bool) -> dict[str, float | None]:
    if len(points) < 2:
        return {}
    accuracies = [point.val_accuracy for point in points]
    end = points[-1].step
    sampled = crossing([point.sampled_completions for point in points], accuracies, RISE)
    return {
        "plateau_val_accuracy": float(np.mean([p.val_accuracy for p in points if p.step >= PLATEAU * end])),
        "steps_to_plateau": crossing([point.step for point in points], accuracies, RISE),
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


def _late_mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values[int(LATE * len(values)) :])) if len(values) else None


def _spikes(norms: LogCurve) -> float | None:
    return None if len(norms) < 2 * STRETCH else float(np.mean(norms.over_median_before() > SPIKE))


def _health(rows: Sequence[dict[str, Any]], warm_up: int) -> dict[str, Any]:
    """What the rules of training health find in the whole log, and at how many of the looks at it.

    The rule of the warm-up speaks of the whole training alone.
    """
    if not rows:
        return {}
    found = dict.fromkeys(finding.name for finding in findings(rows))
    looks = [bool(findings(rows[:end])) for end in range(LOOK, len(rows), LOOK)] + [bool(found)]
    if all_warm_up(warm_up, rows[-1]["step"]):
        found[ALL_WARM_UP] = None
    return {"warned_share": float(np.mean(looks)), HEALTH: " ".join(found)}


# -------------------------------------------------------------------------------------- over the runs


def mean_of(trainings: Sequence[Training], name: str) -> Estimate | None:
    """Mean and t interval over the runs, cut at 0 and for shares at 1; None where any run lacks it."""
    values = [training[name] for training in trainings]
    if None in values:
        return None
    bounds = 0.0, 1.0 if NUMBERS[name][1] == "share" else math.inf
    return over_runs([{"value": value} for value in values], bounds)


def _warned(trainings: Sequence[Training]) -> Counter[str]:
    """Rule -> runs in whose logs it finds something."""
    return Counter(rule for training in trainings for rule in (training[HEALTH] or "").split())


def training_section(trainings: Trainings) -> Section:
    """The report's section on stability and convergence."""
    runs = max(map(len, trainings.values()))
    shown = {name: title for name, (title, _) in NUMBERS.items() if title}
    rows = [[name, *(_cell(of, number) for number in shown)] for name, of in trainings.items()]
    note = sentence(
        "From the logs of training. {}: mean validation accuracy over the last quarter of the steps; {}: "
        "until {} % of the way from the first validation, linear between validations (so as coarse as "
        "validation is). {}: of the validation accuracy below the highest before; validation sets are "
        "small, and a fall of a few points can be chance. {}: standard deviation of the rollouts' accuracy "
        "and trained reward about their own line over the second half; rewards that were trained on differ "
        "between variants. {}: share of the advantages in groups all right or all wrong, over the second "
        "half. {}: share of looks at the log, one every {} rows, at which a rule of training "
        "health finds something.",
        *(emphasis("Plateau"), emphasis("to it"), f"{100 * RISE:.0f}", emphasis("Largest fall")),
        *(emphasis("Late spread"), emphasis("Phantom advantage"), emphasis("Warning"), f"{LOOK}"),
    )
    if runs > 1:
        note = [*note, f" Means over {runs} seeds; a bracket has the lowest and the highest seed."]
    blocks = [Paragraph(note), Table(["method", *shown.values()], rows), Bullets(_warnings(trainings))]
    return Section("Stability and convergence", blocks)


def _cell(trainings: Sequence[Training], name: str) -> Number:
    values = [training[name] for training in trainings]
    if None in values:
        return Number("–")
    in_percent = NUMBERS[name][1] in ("share", "spread")
    scale, form = 100 if in_percent else 1, {"count": ",.0f", "number": ".3g"}.get(NUMBERS[name][1], ".1f")
    mean = float(np.mean(values))
    text, low, high = (f"{scale * value:{form}}" for value in (mean, min(values), max(values)))
    return Number(text + " %" * in_percent + f" [{low}–{high}]" * (len(values) > 1), mean)


def _warnings(trainings: Trainings) -> list[str]:
    """What the rules found in whole logs, and where they found nothing."""
    lines = []
    for name, of_policy in trainings.items():
        several = len(of_policy) > 1
        found = [
            rule.replace("_", " ") + f" ({count} of {len(of_policy)} seeds)" * several
            for rule, count in _warned(of_policy).items()
        ]
        if found:
            lines.append(f"{name}: {listed(found)}.")
    if quiet := [name for name, of_policy in trainings.items() if not _warned(of_policy)]:
        lines.append(f"Nothing is found in the whole log of {listed(quiet)}.")
    return lines
