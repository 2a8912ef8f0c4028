"""How far a policy is from another model on response tokens: divergences and agreement.

Both models are given the same prefix, prompt and response up to a token, and what they predict for that token
is compared over the whole vocabulary (``utils.evaluation.token_values``). The other model is the policy's
teacher, or the policy that its training started from, its reference.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from utils.models.divergences import Measure, log_divergence
from utils.statistics.clusters import clustered_ratios

TOP_K = 5
# In nats per token, except agreement and overlap (shares) and the cosine.
NAMES = ("forward_kl", "reverse_kl", "jsd", "top1_agreement", "top5_overlap", "centred_cosine")
ROUNDING = 1e-6  # nats per token: a policy against itself is not further off, in float32
WITHOUT = "--teacher_metrics false evaluates without a teacher"


@dataclass(frozen=True)
class TokenPrediction:
    """What a model predicts for N tokens, from its logits [N, V], in float32 (float64 for float64 logits).

    log_probs  [N, V], log-softmax
    first      int64 [N], the likeliest token
    best       int64 [N, 5], the five likeliest (all, of fewer)
    centred    [N, V], the logits less their mean over the vocabulary
    """

    log_probs: Tensor
    first: Tensor
    best: Tensor
    centred: Tensor

    @classmethod
    def of(cls, logits: Tensor) -> TokenPrediction:
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return cls(
            logits.log_softmax(-1),
            logits.argmax(-1),
            logits.topk(min(TOP_K, logits.shape[-1])).indices,
            logits - logits.mean(-1, keepdim=True),
        )


def distances(policy: TokenPrediction, teacher: TokenPrediction) -> Tensor:
    """Compare two models' predictions for N tokens: [N, 6] in the order of ``NAMES``.

    With p the teacher's softmax and q the policy's:

        forward_kl      KL(p | q)                                   nats, at least 0
        reverse_kl      KL(q | p)                                   nats, at least 0
        jsd             (KL(p | m) + KL(q | m)) / 2, m = (p + q)/2  nats, 0 to ln 2
        top1_agreement  1 where both put the same token first, else 0
        top5_overlap    how many of the five likeliest tokens they share, by five
        centred_cosine  cosine of the logits, each less its mean over the vocabulary: what is added to all
                        logits alike changes no probability, and dominates a plain cosine
    """
    log_q, log_p = policy.log_probs, teacher.log_probs
    forward, reverse, jsd = (
        log_divergence(log_p, log_q, Measure(kind)) for kind in ("forward_kl", "reverse_kl", "jsd")
    )
    same = (policy.first == teacher.first).to(forward.dtype)
    shared = (policy.best[:, :, None] == teacher.best[:, None, :]).any(-1)
    overlap = shared.to(forward.dtype).mean(-1)
    cosine = nn.functional.cosine_similarity(policy.centred, teacher.centred, dim=-1)
    # Rounding alone takes a divergence of equal distributions below 0. A NaN stays one.
    return torch.stack(
        [forward.clamp(min=0), reverse.clamp(min=0), jsd.clamp(min=0), same, overlap, cosine], dim=1
    )


def against(
    values: Iterable[Mapping[str, np.ndarray]],
    other: str,
    rng: np.random.Generator,
    clusters: np.ndarray | None = None,
) -> dict[str, Any]:
    """How far the policy is from one other model on one text of each item.

    Returns ``items`` and ``tokens`` that were compared and, unless there are none, each of ``NAMES`` as
    {"value", "ci95", "n"}: the mean over all tokens with a bootstrap interval over the n items.

    Args:
        values: of each item's text, from ``token_values.values_of_texts``.
        other: the name of the model.
        rng: of the bootstrap intervals.
        clusters: the number of each item's report, where items share one: the bootstrap draws reports.
    """
    tables = [each[f"distances/{other}"] for each in values]
    tokens = np.array(list(map(len, tables)), dtype=float)
    result = {"items": len(tokens), "tokens": int(tokens.sum())}
    if not tokens.sum():
        return result
    means = clustered_ratios(np.stack([table.sum(0) for table in tables]), tokens, rng, clusters)
    return result | dict(zip(NAMES, means, strict=True))


def kl_per_text(
    values: Iterable[Mapping[str, np.ndarray]],
    other: str,
    rng: np.random.Generator,
    clusters: np.ndarray | None = None,
) -> dict[str, Any]:
    """{"kl_per_text": {"value", "ci95", "n"}}: KL(policy | other) summed over a text, nats, mean over items.

    Along the text as it is: for a sampled text its expectation would be the KL of whole texts, for a greedy
    one it is not. {} where nothing was compared.
    """
    place = NAMES.index("reverse_kl")
    sums = np.array([[each[f"distances/{other}"][:, place].sum()] for each in values])
    if not len(sums):
        return {}
    return {"kl_per_text": clustered_ratios(sums, np.ones(len(sums)), rng, clusters)[0]}


def distance_lines(metrics: Mapping[str, Any]) -> list[str]:
    """What the stage says of the comparisons in metrics.json: a line per other model and text."""
    others = (("teacher", "the teacher"), ("reference", "the SFT policy"))
    return [line for key, whom in others if key in metrics for line in _lines(metrics[key], whom)]


def _lines(metrics: Mapping[str, Any], whom: str) -> list[str]:
    lines = []
    for name, title in (("on_responses", "its own answers"), ("on_gold", "the gold text")):
        part = metrics[name]
        left = f", {part['left_out']} items left out (too long, or no text)" if part["left_out"] else ""
        if not part["tokens"]:
            lines.append(f"  against {whom} on {title}: nothing to compare{left}")
            continue
        agreement, *nats = (
            part[key]["value"] for key in ("top1_agreement", "forward_kl", "reverse_kl", "jsd")
        )
        forward, reverse, jsd = (f"{value:.4g}" if value >= ROUNDING else "0" for value in nats)
        lines.append(
            f"  against {whom} on {title}: agreement {100 * agreement:.1f} %, forward KL {forward}, "
            f"reverse KL {reverse}, JSD {jsd} nats per token "
            f"({part['tokens']} tokens of {part['items']} items{left})"
        )
    return lines
