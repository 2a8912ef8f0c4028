"""Sampled candidates with their rewards, as flat arrays for the reward audit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from utils.frame.files import UserError
from utils.rewards.spec import RewardSpec
from utils.rewards.task_reward import COMPONENTS

_MEASURED = ("reasoning", "intrinsic")
_ABSENT = {
    "reasoning": "no reasoning score",
    "intrinsic": "no teacher scored the candidates",
    "total": "its intrinsic part is another specification's; run 04 again",
}


@dataclass(frozen=True)
class Candidates:
    """All candidates in flat arrays, those of one prompt side by side.

    Attributes:
        prompt: [M] int, the prompt's number, ascending from 0.
        level: per prompt; None where the data set has no levels.
        right: [M] bool, verified.
        tokens: [M] int.
        truncated: [M] bool.
        scores: component -> [M] float64, or the reason why there are none.
    """

    prompt: np.ndarray
    level: list[Any]
    right: np.ndarray
    tokens: np.ndarray
    truncated: np.ndarray
    scores: dict[str, np.ndarray | str]

    def of_prompts(self, chosen: Sequence[int]) -> Candidates:
        """The candidates of these prompts (ascending), renumbered from 0."""
        keep = np.isin(self.prompt, chosen)
        kept = {name: getattr(self, name)[keep] for name in ("right", "tokens", "truncated")}
        scores = {name: s if isinstance(s, str) else s[keep] for name, s in self.scores.items()}
        prompt, level = np.searchsorted(chosen, self.prompt[keep]), [self.level[index] for index in chosen]
        return replace(self, prompt=prompt, level=level, scores=scores, **kept)


def read_candidates(rows: Sequence[dict[str, Any]]) -> Candidates:
    """Flat arrays of the rows of ``candidates.jsonl``.

    Components are the task reward's, weighted, ``reasoning``, user-defined ones and ``intrinsic`` (alpha
    log pi_hat of the whole completion, nats times alpha) as measured, before weights and normalisation,
    ``intrinsic_per_token`` (the same divided by the tokens; a completion without tokens has 0, the most there
    is), the weighted ``total``, and for comparison ``brevity``: minus the tokens.

    Raises UserError naming the prompt where something is missing, not a number, or not finite.
    """
    rows = [row for row in rows if row.get("candidates")]
    if not rows:
        raise UserError("there are no candidates to audit: run 04_generate_candidates.py")
    prompt, found = [], []
    for index, row in enumerate(rows):
        for candidate in row["candidates"]:
            prompt.append(index)
            try:
                found.append(_values(candidate))
            except KeyError as error:
                raise UserError(f"candidates of {row.get('id')}: no {error}; run 04 again") from None
            except (AttributeError, TypeError, ValueError) as error:
                raise UserError(f"candidates of {row.get('id')}: {error}; run 04 again") from None
    columns: dict[str, np.ndarray | str] = {}
    own = own_names(rows[0]["candidates"][0])
    for name in dict.fromkeys(name for value in found for name in value):
        values = [value.get(name) for value in found]
        missing = [place for place, value in enumerate(values) if value is None]
        if missing and len(missing) < len(values):
            at = rows[prompt[missing[0]]].get("id")
            raise UserError(f"candidates of {at}: no raw {name}, others have one; run 04 again")
        columns[name] = _ABSENT[name] if missing else np.array(values)
    intrinsic, tokens = columns["intrinsic"], columns["tokens"]
    per_token = intrinsic if isinstance(intrinsic, str) else intrinsic / np.maximum(tokens, 1)
    scores = {name: columns[name] for name in (*COMPONENTS, "reasoning", *own, "intrinsic")}
    scores |= {"intrinsic_per_token": per_token, "total": columns["total"], "brevity": -tokens}
    right, truncated = columns["correct"] > 0, columns["truncated"] > 0
    return Candidates(np.array(prompt), [row.get("level") for row in rows], right, tokens, truncated, scores)


def own_names(candidate: dict[str, Any]) -> list[str]:
    """The user-defined components that a candidate was measured by."""
    return [name for name in candidate.get("raw", {}) if name not in _MEASURED]


def _values(candidate: dict[str, Any]) -> dict[str, float | None]:
    """The numbers of one candidate; None where an optional one was not measured.

    Raises KeyError, AttributeError, TypeError or ValueError where it is not a candidate with rewards.
    """
    raw = candidate.get("raw", {})
    numbers = {name: candidate[name] for name in ("correct", "tokens", "truncated")}
    numbers |= {name: candidate["reward"][name] for name in (*COMPONENTS, "total")}
    numbers |= {name: raw.get(name) for name in _MEASURED}
    numbers |= {name: raw[name] for name in own_names(candidate)}
    values = {}
    for name, number in numbers.items():
        value = None if number is None and name in _ABSENT else float(number)
        if value is not None and not np.isfinite(value):
            raise ValueError(f"{name} is {number}")
        values[name] = value
    return values


def paid_otherwise(rows: Sequence[dict[str, Any]], spec: RewardSpec) -> str | None:
    """What shows that the rows' rewards come from another specification; None where nothing does.

    Right answers and broken forms have a price that follows from the specification alone, and what was
    measured has a weight. (A part that ``--reward`` left out is 0, and the teacher's part is not always its
    measure times its weight.)
    """
    prices = {
        "exact_match": spec.weights.correctness * spec.exact_match,
        "format_penalty": spec.weights.format * spec.format_penalty,
    }
    plain, intrinsic = not spec.adaptive.enabled, spec.intrinsic
    weights = {name: own.weight for name, own in spec.own.items()}
    weights |= {"reasoning": spec.weights.reasoning} if plain else {}
    if plain and intrinsic.normaliser == "none" and not (intrinsic.clip or intrinsic.missing_eos_penalty):
        weights["intrinsic"] = spec.weights.intrinsic
    for row in rows:
        for candidate in row.get("candidates") or ():
            if set(own_names(candidate)) != set(spec.own):
                return (
                    f"candidates of {row['id']} were measured by the own rewards {own_names(candidate)}, the "
                    f"reward specification has {list(spec.own)}: run 04_generate_candidates.py again"
                )
            raw = candidate["raw"]
            measured = {name: weight * (raw.get(name) or 0) for name, weight in weights.items()}
            for name, price in (prices | measured).items():
                paid = candidate["reward"].get(name)
                if paid and abs(paid - price) > 1e-5 * max(1.0, abs(paid)):
                    return (
                        f"candidates of {row['id']}: {name} is {paid:g}, the reward specification gives "
                        f"{price:g}; run 04_generate_candidates.py again to audit the rewards of training"
                    )
    return None
