"""The reward audit: does a reward rank right answers above wrong ones, or does it track length?

Works on sampled candidates (04's ``candidates.jsonl``), before anything is trained. For every component and
the total, against verified correctness:

    pair_accuracy  share of pairs of a right and a wrong candidate of the same prompt in which the right one
                   scores higher, ties half: what a method with a baseline per prompt can learn from
    auroc          the same over all pairs, of whichever prompts; prompts that are easy for both the policy
                   and the reward raise it
    correctness    Spearman's correlation with being right
    length         Spearman's correlation with the length in tokens: of all candidates, and of wrong ones
                   alone, where correctness cannot explain it
    phantom        share of GRPO's advantages that are in prompts all right or all wrong, where they say
                   nothing of what makes an answer right

each with a 95 % interval by a bootstrap over prompts, overall and by level. What cannot be computed is null,
with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils.data.records import load_records
from utils.frame.files import derive_seed, read_jsonl, write_json
from utils.frame.stage import StageContext
from utils.rewards.audit.audit_candidates import Candidates, paid_otherwise, read_candidates
from utils.rewards.audit.audit_plot import plot_audit
from utils.rewards.audit.rescoring import SPLITS, rescored, rewarded_otherwise
from utils.rewards.spec import load_reward_spec
from utils.rewards.task_reward import COMPONENTS
from utils.statistics.ranking import group_pairs
from utils.statistics.ranking_intervals import (
    all_alike_bound,
    draw_prompts,
    over_resamples,
    percentile_interval,
    weighted_auroc,
    weighted_spearman,
)

SCHEMA_VERSION = 1
RESAMPLES = 1000
CONSTANT = 1e-6  # a deviation below this share of the root mean square is rounding, not spread
ADDED = 1e-4  # by GRPO, to the deviation that it divides by
# Below so many prompts a percentile interval is too narrow to be shown as one.
FEWEST_PROMPTS = 10

# What a reader is told about each verdict; "{}" is the component.
VERDICTS = {
    "worth_optimising": "worth optimising",
    "length_proxy": "goes with length more than with correctness: optimising it may change length alone",
    "no_evidence": "not told from chance: not worth optimising on this evidence",
    "misleading": "ranks wrong above right: do not optimise it",
    "verification": "is the verified correctness itself",
    "partial_credit": "is given to wrong answers alone: judge it by the total",
    "too_few": "too few prompts with right and wrong candidates to tell",
    "not_auditable": "cannot be audited",
    "reference": "for comparison: what preferring the shorter answer would do",
}
_WARN = ("length_proxy", "no_evidence", "misleading")


def audit_stage(ctx: StageContext) -> int:
    """``02_build_rewards.py --audit``: audit ``reward_spec`` on ``candidates``, which are rewarded anew where
    04 did it by another one. Warns of what shows that they were, where they cannot be.

    Returns the stage's exit code.
    """
    path, spec = ctx.inputs["candidates"], load_reward_spec(ctx.inputs["reward_spec"])
    rows, splits = read_jsonl(path), [ctx.inputs[split] for split in SPLITS if split in ctx.inputs]
    if rewarded_otherwise(path, ctx.inputs["reward_spec"]):
        records = {record.id: record for split in splits for record in load_records(split)}
        rows = rescored(ctx.progress(rows, description="rewarding"), records, spec, path.parent)
        ctx.log("the candidates are rewarded anew: 04 did it by another reward specification")
    if otherwise := paid_otherwise(rows, spec):
        ctx.log(f"warning: {otherwise}")
    components = write_audit(rows, ctx.out, ctx.seed)["components"]
    for line in audit_lines(components):
        ctx.log(f"  {line}")
    for name, found in components.items():
        ctx.metrics[name] = {key: found[key]["value"] for key in ("pair_accuracy", "auroc")}
    return 0


def audit_lines(components: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What the stages say of an audit: a line per component, and one for all that cannot be audited for one
    reason.
    """
    lines, alike = [], {}
    for name, found in components.items():
        if found["verdict"] == "not_auditable":
            alike.setdefault(found["pair_accuracy"]["reason"], []).append(name.replace("_", " "))
        elif found["verdict"] != "reference" or found["pair_accuracy"]["value"] is not None:
            lines.append(found["sentence"])
    unable = VERDICTS["not_auditable"]
    return lines + [f"{', '.join(names)}: {unable} ({reason})" for reason, names in alike.items()]


def write_audit(rows: Sequence[dict[str, Any]], folder: Path, seed: int) -> dict[str, Any]:
    """Audit the rows of ``candidates.jsonl``; write ``reward_audit.json`` and ``reward_audit.png`` to
    ``folder``, and return what the JSON holds. Equal rows and seed give equal bytes.

    Raises UserError where the rows are not candidates with rewards.
    """
    result = audit(rows, seed)
    write_json(folder / "reward_audit.json", result)
    plot_audit(result, folder / "reward_audit.png")
    return result


def audit(rows: Sequence[dict[str, Any]], seed: int, resamples: int = RESAMPLES) -> dict[str, Any]:
    """The audit as JSON data: ``counts, levels, components, warnings`` (docs/reward_audit.md).

    Args:
        rows: as in ``candidates.jsonl``: a prompt each, with ``id, level, candidates``.
        seed: of the bootstrap.
        resamples: bootstrap samples of prompts per interval.
    """
    whole = read_candidates(rows)
    parts = {"": whole} | {
        "none" if level is None else str(level): whole.of_prompts(
            [index for index, at in enumerate(whole.level) if at == level]
        )
        for level in sorted(set(whole.level), key=lambda level: (level is None, level))
        if len(set(whole.level)) > 1
    }
    measured = {}
    for name, part in parts.items():
        rng = np.random.default_rng(derive_seed(seed, "reward_audit", name))
        draws = draw_prompts(len(part.level), resamples, rng)
        measured[name] = {component: _measure(component, part, draws) for component in part.scores}
    components = {}
    for name, figures in measured[""].items():
        verdict = _verdict(name, whole, figures)
        components[name] = figures | {
            "verdict": verdict,
            "sentence": _sentence(name, verdict, figures),
            "levels": {level: measured[level][name] for level in parts if level},
        }
    return {
        "schema_version": SCHEMA_VERSION,
        "seed": seed,
        "resamples": resamples,
        "counts": _counts(whole),
        "levels": {level: _counts(part) for level, part in parts.items() if level},
        "components": components,
        "warnings": [
            components[name]["sentence"] for name in components if components[name]["verdict"] in _WARN
        ],
    }


def _counts(part: Candidates) -> dict[str, int]:
    right, wrong = np.bincount(part.prompt, part.right), np.bincount(part.prompt, ~part.right)
    return {
        "prompts": len(right),
        "mixed_prompts": int(((right > 0) & (wrong > 0)).sum()),
        "candidates": len(part.right),
        "right": int(part.right.sum()),
        "wrong": int((~part.right).sum()),
        "pairs": int((right * wrong).sum()),
        "truncated": int(part.truncated.sum()),
    }


def _measure(name: str, part: Candidates, draws: np.ndarray) -> dict[str, Any]:
    """All figures of one component on these candidates."""
    score, right, prompt = part.scores[name], part.right, part.prompt

    def tracked(keep: np.ndarray | slice) -> dict[str, Any]:
        if name == "brevity":
            return _null("it is the length itself")
        kept = score if isinstance(score, str) else score[keep]
        return _correlation(kept, part.tokens[keep], "length", prompt[keep], draws)

    reason = _nothing_to_rank(score, right)
    return {
        "pair_accuracy": _null(reason) if reason else _pair_accuracy(score, right, prompt, draws),
        "auroc": _null(reason) if reason else _auroc(score, right, prompt, draws),
        "correctness": _correlation(score, right.astype(float), "correctness", prompt, draws),
        "length": {"all": tracked(slice(None)), "wrong": tracked(~right)},
        "phantom": _phantom(score, right, prompt, draws),
    }


def _phantom(
    score: np.ndarray | str, right: np.ndarray, prompt: np.ndarray, draws: np.ndarray
) -> dict[str, Any]:
    """Of the sum of |score - mean| / deviation over each prompt's candidates, as GRPO has its advantages."""
    if isinstance(score, str):
        return _null(score)
    count, wins = np.bincount(prompt), np.bincount(prompt, right)
    centred = score - (np.bincount(prompt, score) / count)[prompt]
    spread = np.sqrt(np.bincount(prompt, centred**2) / np.maximum(count - 1, 1))
    told_apart = spread > CONSTANT * np.sqrt(np.bincount(prompt, score**2) / count)
    if not told_apart.any():
        return _null("no prompt's candidates differ in it")
    mass = (np.bincount(prompt, np.abs(centred)) / (spread + ADDED))[told_apart]
    alike = ((wins == 0) | (wins == count))[told_apart]

    def share(weights: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return (mass * alike) @ weights / (mass @ weights)

    return _figure(share, draws, np.flatnonzero(told_apart), len(mass), is_share=True)


def _nothing_to_rank(score: np.ndarray | str, right: np.ndarray) -> str | None:
    """Why right cannot be ranked above wrong by this score at all; None if it can."""
    if isinstance(score, str):
        return score
    if not right.any():
        return "no candidate is right"
    if right.all():
        return "every candidate is right"
    return f"every candidate gets {score[0]:g}" if np.ptp(score) == 0 else None


def _pair_accuracy(
    score: np.ndarray, right: np.ndarray, prompt: np.ndarray, draws: np.ndarray
) -> dict[str, Any]:
    mixed = np.flatnonzero(np.bincount(prompt, right) * np.bincount(prompt, ~right))
    if not len(mixed):
        return _null("no prompt has both right and wrong candidates")
    won, pairs = group_pairs(score, right, prompt.tolist())  # of the mixed prompts, in their order

    def accuracy(weights: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return (won @ weights) / (pairs @ weights)

    return _figure(accuracy, draws, mixed, len(mixed), is_share=True)


def _auroc(score: np.ndarray, right: np.ndarray, prompt: np.ndarray, draws: np.ndarray) -> dict[str, Any]:
    units = min(len(np.unique(prompt[right])), len(np.unique(prompt[~right])))
    return _figure(lambda weights: weighted_auroc(score, right, weights), draws, prompt, units, is_share=True)


def _correlation(
    score: np.ndarray | str, other: np.ndarray, what: str, prompt: np.ndarray, draws: np.ndarray
) -> dict[str, Any]:
    if isinstance(score, str):
        return _null(score)
    if len(score) < 3:
        return _null("fewer than three candidates")
    if np.ptp(score) == 0:
        return _null(f"every candidate gets {score[0]:g}")
    if np.ptp(other) == 0:
        return _null(f"every candidate has the same {what}")
    units = len(np.unique(prompt))
    return _figure(lambda weights: weighted_spearman(score, other, weights), draws, prompt, units)


def _figure(
    statistic, draws: np.ndarray, prompt: np.ndarray, units: int, is_share: bool = False
) -> dict[str, Any]:
    """A statistic with its interval; ``units``: how many prompts it rests on.

    ``is_share``: it lies in [0, 1]; at exactly 0 or 1, where a bootstrap has no width, the bound is that of
    so many prompts that are all alike.
    """
    value = float(statistic(np.ones((len(prompt), 1)))[0])
    if units < FEWEST_PROMPTS:
        reason = f"no interval: it rests on {units} prompt{'s' * (units != 1)}, fewer than {FEWEST_PROMPTS}"
        return {"value": round(value, 6), "ci95": None, "reason": reason}
    if is_share and value in (0.0, 1.0):
        bound = all_alike_bound(units)
        low, high = (bound, 1.0) if value else (0.0, 1 - bound)
    else:
        low, high = percentile_interval(over_resamples(statistic, draws, prompt))
    return {"value": round(value, 6), "ci95": [round(low, 6), round(high, 6)], "reason": None}


def _null(reason: str) -> dict[str, Any]:
    return {"value": None, "ci95": None, "reason": reason}


def _verdict(name: str, whole: Candidates, figures: dict[str, Any]) -> str:
    accuracy, score = figures["pair_accuracy"], whole.scores[name]
    if name == "brevity":
        return "reference"
    if accuracy["value"] is None:
        return "not_auditable"
    if name in COMPONENTS and not (score[whole.right] != 0).any() and (score >= 0).all():
        return "partial_credit"
    if name == "exact_match" and np.array_equal(score > 0, whole.right):
        return "verification"
    if accuracy["ci95"] is None:
        return "too_few"
    low, high = accuracy["ci95"]
    if high < 0.5:
        return "misleading"
    if low <= 0.5:
        return "no_evidence"
    length = figures["length"]["all"]["value"]
    if length is not None and abs(length) > abs(figures["correctness"]["value"]):
        return "length_proxy"
    return "worth_optimising"


def _sentence(name: str, verdict: str, figures: dict[str, Any]) -> str:
    """One plain sentence on the component: what it ranks, what it tracks, what follows."""
    accuracy, length = figures["pair_accuracy"], figures["length"]["all"]
    label = name.replace("_", " ")
    if accuracy["value"] is None:
        return f"{label}: {VERDICTS['not_auditable']} ({accuracy['reason']})"
    ranks = f"ranks right above wrong in {_percent(accuracy['value'])} % of pairs"
    if accuracy["ci95"]:
        low, high = accuracy["ci95"]
        ranks += f" ({_percent(low)} to {_percent(high)})"
    if length["value"] is not None:
        ranks += f", {_tracking(length['value'])}"
    if name == "total" and figures["phantom"]["value"] is not None:
        share = _percent(figures["phantom"]["value"])
        ranks += f", {share} % of its advantages are in prompts all right or all wrong"
    return f"{label}: {ranks}; {VERDICTS[verdict]}"


def _percent(share: float) -> str:
    """A share in per cent, without claiming 100 or 0 by rounding."""
    text = f"{100 * share:.0f}"
    return f"{100 * share:.1f}" if text in ("0", "100") and share not in (0.0, 1.0) else text


def _tracking(correlation: float) -> str:
    size = abs(correlation)
    words = "hardly" if size < 0.1 else "weakly" if size < 0.3 else "moderately" if size < 0.5 else "strongly"
    return f"{words} tracks length ({correlation:+.2f})"
