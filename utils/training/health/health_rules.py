"""What a training log says about the training's health: rules over logged curves, each with what to try.

The same rules serve PPO, GRPO and SFT: a rule whose keys are not in the log does not apply. A trend is one
that a Mann-Kendall test finds and that is large enough to matter; two noisy points are none. Levels are
medians over the last logged values, so that a single outlier decides nothing. Light to import.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from utils.training.health.health_check import Check, HealthFinding, Rule, needs, too_few
from utils.training.health.log_curves import LAST, P_BOTH, P_TREND, STRETCH, History, LogCurve, is_finite


def checks(history: Sequence[dict[str, Any]]) -> list[Check]:
    """The outcome of every rule whose keys are in the log, in order of consequence."""
    log = History(history)
    return [check for rule in RULES for check in rule(log)]


def findings(history: Sequence[dict[str, Any]]) -> list[HealthFinding]:
    """What is unhealthy, in order of consequence; empty for a healthy log."""
    return [check.finding for check in checks(history) if check.finding]


def all_warm_up(warm_up: int, steps: int) -> bool:
    """Whether a warm-up takes all optimizer steps of a training, which then never has its learning rate."""
    return warm_up >= steps > 0


# ------------------------------------------------------------------------------------------------- rules


# Keys that must be numbers in every row that has them; others may have no value in a step.
_MUST_BE_FINITE = ("loss", "grad_norm", "reward", "kl", "entropy", "approx_kl", "returns/mean", "values/mean")
_COMPONENT = re.compile(r"rewards/\w+/mean")
# Rewards that can rise while answers get worse. (Parts of the task reward move against each other by
# construction: partial credit is given where the answer is wrong.)
_TRAINED = ("reward", "rewards/intrinsic/mean", "rewards/reasoning/mean")


def non_finite(log: History) -> Iterator[Check]:
    """NaN or infinity in what must be a number."""
    keys = [key for key in _MUST_BE_FINITE if key in log]
    logged = sorted({key for row in log.rows for key in row})
    keys += [key for key in logged if key.startswith("loss/") or _COMPONENT.fullmatch(key)]
    broken = [(row["step"], k) for row in log.rows for k in keys if k in row and not is_finite(row[k])]
    finding = None
    if broken:
        step, key = broken[0]
        finding = HealthFinding(
            "non_finite",
            "serious",
            f"{key} is not a finite number at step {step:g} ({len(broken)} such values in all)",
            "lower algo.learning_rate, set model.torch_dtype to float32, and look at that step's rewards",
        )
    if keys:
        yield Check("non_finite", f"{len(keys)} keys, {len(broken)} values not finite", finding)


def prompts_change(log: History) -> bool:
    """Whether a curriculum's prompts get harder or easier: then rollouts early and late do not compare."""
    curve = log.curve("prompts/mean_level")
    return len(curve) >= STRETCH and (curve.trend().rises() or curve.trend().falls())


def accuracy(log: History) -> Iterator[Check]:
    """Verified accuracy that is lost, or falls, above all while the trained reward rises."""
    of_rollouts, of_validation = ("train_accuracy", LAST, 30, P_TREND), ("val_accuracy", 1, 6, P_BOTH)
    curves = [of_validation] if prompts_change(log) else [of_rollouts, of_validation]
    for key, ends, trend_from, p in curves:
        whole = log.curve(key)
        if len(whole) <= ends:
            yield from too_few(key, whole, ends + 1)
            continue
        parts = [part for part in (whole, whole[len(whole) // 2 :]) if len(part) >= trend_from]
        found = [*(_fall(log, key, part, p) for part in parts), _collapse(key, whole, ends)]
        worst = sorted((finding for finding in found if finding), key=lambda f: f.severity != "serious")
        first, last = np.median(whole.values[:ends]), np.median(whole.values[-ends:])
        figures = f"{100 * first:.1f} % -> {100 * last:.1f} %, at most {100 * whole.values.max():.1f} %"
        yield Check(key, figures, worst[0] if worst else None)


def _collapse(key: str, curve: LogCurve, ends: int) -> HealthFinding | None:
    """Whether two thirds of the accuracy are lost: one bad update does that, and leaves no trend."""
    smooth = np.lib.stride_tricks.sliding_window_view(curve.values, min(ends, 5))
    peak, last = max(curve.values[0], np.median(smooth, axis=1).max()), np.median(curve.values[-ends:])
    if peak < 0.25 or last >= peak / 3:
        return None
    return HealthFinding(
        "accuracy_lost",
        "serious",
        f"{key} has been {100 * peak:.1f} % and is {100 * last:.1f} % at step {curve.steps[-1]:g}",
        "lower algo.learning_rate, raise algo.warmup_steps, algo.kl_coef (PPO) or algo.beta (GRPO); "
        "ckpt_*/best is older",
    )


def _fall(log: History, key: str, part: LogCurve, p: float) -> HealthFinding | None:
    """What a fall of this accuracy over this part of the log means; None if it does not fall."""
    down = part.trend()
    if down.change > -0.03 or not down.falls(P_BOTH):
        return None
    start, end = part.steps[0], part.steps[-1]
    points = f"{-100 * down.change:.1f} points"
    fell = f"{key} fell by {points} from step {start:g} to {end:g} (p = {down.p_value:.1g})"
    if risen := _risen(log, start, end):
        return HealthFinding(
            "reward_without_accuracy",
            "serious",
            f"{fell} while {risen}: what is rewarded is no longer what is right",
            "look at the reward audit of stage 04; train with --reward combined or task, lower "
            "reward.weights.intrinsic, raise algo.kl_coef (PPO) or algo.beta (GRPO); ckpt_*/best is older",
        )
    if down.change > -0.05 or not down.falls(p):
        return None
    return HealthFinding(
        f"{key}_falls",
        "warning",
        fell,
        "lower algo.learning_rate, raise algo.kl_coef (PPO) or algo.beta (GRPO), or stop earlier: "
        "ckpt_*/best is older",
    )


def _risen(log: History, start: float, end: float) -> str | None:
    """Which trained reward rose between these steps, with the figures; None if none did."""
    for key in _TRAINED:
        curve = log.curve(key)
        keep = (curve.steps >= start) & (curve.steps <= end)
        part = LogCurve(curve.steps[keep], curve.values[keep])
        trend = part.trend()
        if len(part) >= STRETCH and trend.rises(P_BOTH):
            ends = part.values[: STRETCH // 2].mean(), part.values[-(STRETCH // 2) :].mean()
            return f"{key} rose from {ends[0]:.3g} to {ends[1]:.3g} (p = {trend.p_value:.1g})"
    return None


def no_signal(log: History) -> Iterator[Check]:
    """Rewards that do not differ: nothing to learn from."""
    if not log.is_rl():
        return
    groups, spread, reward = log.curve("frac_reward_zero_std"), log.curve("reward_std"), log.curve("reward")
    message = None
    dead = len(groups) > 0 and groups.values.min() == 1  # certain, however few rows there are
    if dead or len(groups) >= 3 and groups.last >= 0.9:
        message = f"in {100 * groups.last:.0f} % of the prompts all completions get the same reward"
    elif len(spread) >= 3 and spread.last <= 1e-6:
        message = "all completions of a rollout get the same reward"
    elif len(reward) >= LAST and np.ptp(reward.values[-LAST:]) <= 1e-9:
        message = f"the mean reward has been {reward.values[-1]:g} in each of the last {LAST} logs"
    finding = message and HealthFinding(
        "no_signal",
        "serious" if len(reward) >= 3 else "warning",
        f"{message} (step {reward.steps[-1] if len(reward) else 0:g}): there is nothing to learn from",
        "train SFT longer so that some answers are right, or choose easier prompts; raise "
        "algo.num_generations or model.generation.temperature; with --reward combined the teacher tells "
        "completions apart that the task reward does not",
    )
    figures = f"reward {reward.first:.3g} -> {reward.last:.3g}" if len(reward) else "no reward"
    if len(groups):
        figures += f", {100 * groups.last:.0f} % of groups without signal"
    judged = bool(finding) or max(len(groups), len(spread)) >= 3 or len(reward) >= LAST
    yield Check("no_signal", figures + ("" if judged else "; 3 logs needed"), finding or None, judged)


@needs(LAST, "kl")
def kl_runaway(log: History, curve: LogCurve) -> Iterator[Check]:
    """KL to the reference that is large, or that multiplies."""
    level, quarter, half = curve.last, len(curve) // 4, len(curve) // 2
    middle = float(np.median(curve.values[quarter:half]))
    multiplies = len(curve) >= 2 * STRETCH and level > max(0.1, 3 * middle)
    message = None
    if level > 0.5:
        message = f"the KL to the reference is {level:.2f} nats per token at step {curve.steps[-1]:g}"
    elif multiplies and curve[quarter:].trend().rises():
        message = (
            f"the KL to the reference multiplies: {middle:.2g} nats per token at steps "
            f"{curve.steps[quarter]:g} to {curve.steps[half]:g}, {level:.2g} at step {curve.steps[-1]:g}"
        )
    finding = message and HealthFinding(
        "kl_runaway",
        "serious",
        message,
        "raise algo.kl_coef or set algo.adaptive_kl with algo.kl_target (PPO), raise algo.beta (GRPO), or "
        "lower algo.learning_rate",
    )
    figures = f"{level:.3g} nats per token, at most {curve.values.max():.3g}"
    yield Check("kl_runaway", figures, finding or None)


@needs(STRETCH, "entropy", when=History.is_rl)
def entropy(log: History, curve: LogCurve) -> Iterator[Check]:
    """A policy that no longer explores, or dissolves into noise. Not for SFT, where entropy should fall."""
    first, last = curve.first, curve.last
    span = f"from {first:.3g} to {last:.3g} nats per token (steps {curve.steps[0]:g} to {curve.steps[-1]:g})"
    finding = None
    if last < 0.15 * first and curve.trend().falls():
        finding = HealthFinding(
            "entropy_collapse",
            "warning",
            f"the entropy has collapsed {span}: completions of a prompt are all alike",
            "raise algo.entropy_coef or algo.kl_coef (PPO), or algo.beta (GRPO), or lower "
            "algo.learning_rate; a teacher's reward alone (--reward intrinsic) seeks the teacher's mode",
        )
    elif last > 3 * first and last > 0.5 and curve.trend().rises():
        finding = HealthFinding(
            "entropy_rises",
            "warning",
            f"the entropy has risen {span}: the policy dissolves into noise",
            "lower algo.learning_rate and algo.entropy_coef, raise algo.kl_coef (PPO) or algo.beta (GRPO)",
        )
    yield Check("entropy", span, finding)


@needs(STRETCH, "completions/mean_length", when=lambda log: not prompts_change(log))
def length(log: History, curve: LogCurve) -> Iterator[Check]:
    """Completions that get much longer or shorter while accuracy does not rise."""
    first, last = curve.first, curve.last
    span = f"from {first:.1f} to {last:.1f} tokens (steps {curve.steps[0]:g} to {curve.steps[-1]:g})"
    drifts = (last > 1.5 * first and curve.trend().rises()) or (last < first / 1.5 and curve.trend().falls())
    finding = None
    if drifts and not log.curve("train_accuracy", "val_accuracy").trend().rises(P_BOTH):
        finding = HealthFinding(
            "length_drift",
            "warning",
            f"completions went {span} while accuracy did not rise: the length itself may be rewarded",
            "look at length in the reward audit of stage 04; use reward.intrinsic.form logprob or another "
            "reward.intrinsic.normaliser, keep algo.gamma at 1, set reward.intrinsic.missing_eos_penalty",
        )
    yield Check("length", span, finding)


@needs(LAST, "completions/clipped_ratio")
def truncation(log: History, curve: LogCurve) -> Iterator[Check]:
    """Completions cut at the limit, many or ever more of them."""
    first, last = curve.first, curve.last
    rises = len(curve) >= STRETCH and last > first + 0.1 and curve.trend().rises()
    finding = None
    if last > 0.2 or rises:
        finding = HealthFinding(
            "truncation",
            "warning",
            f"{100 * last:.0f} % of completions are cut at the limit at step {curve.steps[-1]:g} "
            f"({100 * first:.0f} % at first)",
            "raise model.generation.max_new_tokens, set reward.intrinsic.missing_eos_penalty (PPO), or "
            "algo.mask_truncated_completions (GRPO)",
        )
    yield Check("truncation", f"{100 * first:.1f} % -> {100 * last:.1f} %", finding)


@needs(2 * STRETCH, "explained_variance/lambda_1")
def explained_variance(log: History, curve: LogCurve) -> Iterator[Check]:
    """Values worse than a constant for long; the first, before a critic has learned, do not count."""
    later = curve[STRETCH:]
    bad = np.flatnonzero(np.convolve(later.values < 0, np.ones(STRETCH), mode="valid") >= 0.85 * STRETCH)
    finding = None
    if len(bad):
        part = later[bad[-1] : bad[-1] + STRETCH]
        finding = HealthFinding(
            "explained_variance",
            "warning",
            f"the values are worse than a constant: explained variance below 0 in "
            f"{100 * np.mean(part.values < 0):.0f} % of the logs from step {part.steps[0]:g} to "
            f"{part.steps[-1]:g}, median {np.median(part.values):.2f}",
            "set algo.value_model siblings, which needs no critic, or raise algo.value_learning_rate; "
            "algo.lam 1 depends on the values less",
        )
    yield Check("explained_variance", f"{curve.first:.2f} -> {curve.last:.2f}", finding)


@needs(2 * STRETCH, "loss/value")
def value_loss(log: History, curve: LogCurve) -> Iterator[Check]:
    """A value loss that grows while the critic explains little."""
    remedy = (
        "lower algo.value_learning_rate, widen algo.cliprange_value, or bound the returns by "
        "reward.intrinsic.normaliser and reward.intrinsic.clip"
    )
    explains = log.curve("explained_variance/lambda_1")
    explained = len(explains) and explains.last > 0.3
    finding = None if explained else _growth("value_loss", curve[len(curve) // 4 :], 3, remedy)
    yield Check("value_loss", f"{curve.first:.3g} -> {curve.last:.3g}", finding)


@needs(LAST, "clip_ratio/policy", "clip_ratio/region_mean")
def clip_fraction(log: History, curve: LogCurve) -> Iterator[Check]:
    """Too many tokens whose ratio is clipped: the policy moves too far on one rollout."""
    finding, share = None, 100 * curve.last
    if curve.last > 0.3:
        finding = HealthFinding(
            "clip_fraction",
            "warning",
            f"the ratio of {share:.0f} % of the tokens is clipped at step {curve.steps[-1]:g}",
            "lower algo.learning_rate, algo.num_ppo_epochs (PPO) or algo.num_iterations (GRPO); set "
            "algo.target_kl (PPO)",
        )
    yield Check("clip_fraction", f"{share:.1f} % of tokens", finding)


@needs(2 * STRETCH, "advantages/phantom")
def phantom_advantage(log: History, curve: LogCurve) -> Iterator[Check]:
    """Most of the advantages in groups all right or all wrong, while accuracy does not rise."""
    finding, share = None, 100 * curve.last
    if curve.last > 0.5 and not log.curve("train_accuracy", "val_accuracy").trend().rises(P_BOTH):
        finding = HealthFinding(
            "phantom_advantage",
            "warning",
            f"{share:.0f} % of the advantages are in groups all right or all wrong at step "
            f"{curve.steps[-1]:g}, and accuracy does not rise: what is learnt is not what is right",
            "set algo.group_filter outcome, train with --reward task, or lower reward.weights.intrinsic",
        )
    yield Check("phantom_advantage", f"{share:.0f} % of the advantages", finding)


@needs(2 * STRETCH, "grad_norm")
def gradient_spikes(log: History, curve: LogCurve) -> Iterator[Check]:
    """Gradient norms far above those of the steps before."""
    later, times = curve[STRETCH:], curve.over_median_before()
    spikes, worst = int((times > 10).sum()), int(times.argmax())
    finding = None
    if spikes >= 3 or times[worst] > 100:
        finding = HealthFinding(
            "gradient_spikes",
            "warning",
            f"{spikes} gradient norms above 10 times the median of the {STRETCH} logs before; the largest is "
            f"{later.values[worst]:.3g} at step {later.steps[worst]:g}, {times[worst]:.0f} times it",
            "lower algo.learning_rate or model.training.max_grad_norm, raise algo.warmup_steps, or bound "
            "rewards by reward.intrinsic.clip",
        )
    yield Check("gradient_spikes", f"median {np.median(curve.values):.3g}, {spikes} spikes", finding)


@needs(STRETCH, "updates_skipped")
def updates_skipped(log: History, curve: LogCurve) -> Iterator[Check]:
    """Rollouts that are often left early because the policy moved beyond algo.target_kl."""
    finding, share = None, float(np.mean(curve.values[-STRETCH:] > 0))
    if share >= 0.5:
        finding = HealthFinding(
            "updates_skipped",
            "warning",
            f"updates were skipped in {100 * share:.0f} % of the last {STRETCH} rollouts "
            f"(to step {curve.steps[-1]:g}): rollouts are sampled and not used",
            "lower algo.learning_rate or algo.num_ppo_epochs, or raise algo.target_kl",
        )
    yield Check("updates_skipped", f"in {100 * share:.0f} % of rollouts", finding)


@needs(2 * STRETCH, "loss", when=lambda log: not log.is_rl())
def supervised_loss(log: History, curve: LogCurve) -> Iterator[Check]:
    """A supervised loss that grows (a policy's surrogate loss says nothing by its level)."""
    remedy = "lower algo.learning_rate or raise algo.warmup_steps"
    finding = _growth("supervised_loss", curve[len(curve) // 2 :], 1.2, remedy)
    yield Check("supervised_loss", f"{curve.first:.3g} -> {curve.last:.3g}", finding)


def _growth(name: str, part: LogCurve, times: float, remedy: str) -> HealthFinding | None:
    """Whether a loss multiplies over part of its curve."""
    if not (part.last > times * part.first > 0 and part.trend().rises()):
        return None
    loss = "value loss" if name == "value_loss" else "loss"
    start, end = f"{part.first:.3g} at step {part.steps[0]:g}", f"{part.last:.3g} at step {part.steps[-1]:g}"
    return HealthFinding(name, "warning", f"the {loss} grows: {start}, {end}", remedy)


RULES: tuple[Rule, ...] = (
    non_finite,
    accuracy,
    no_signal,
    kl_runaway,
    entropy,
    length,
    truncation,
    explained_variance,
    value_loss,
    clip_fraction,
    phantom_advantage,
    gradient_spikes,
    updates_skipped,
    supervised_loss,
)
