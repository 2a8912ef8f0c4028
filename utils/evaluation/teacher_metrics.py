"""How far a policy is from its teacher on response tokens: divergences and agreement.

Both models are given the same prefix, prompt and response up to a token, and what they predict for that token
is compared over the whole vocabulary. Prompt and padding tokens contribute nothing. A prompt is encoded once
for all responses to it (``utils.models.shared_prefix``), and logits exist for a few tokens at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from utils.common import UserError
from utils.evaluation.statistics import bootstrap_ratios
from utils.models.prefix_scoring import LOGIT_BYTES, states_before
from utils.models.shared_prefix import CompletionBatch, head_obstacle, obstacle, output_head
from utils.models.teacher import Teacher
from utils.training.divergences import Measure, log_divergence

TOP_K = 5
# In nats per token, except agreement and overlap (shares) and the cosine.
NAMES = ("forward_kl", "reverse_kl", "jsd", "top1_agreement", "top5_overlap", "centred_cosine")
WITHOUT = "--teacher_metrics false evaluates without a teacher"

SLICE_TOKENS = 2**14  # prompt and response tokens run at once, padding counted


def distances(policy: Tensor, teacher: Tensor) -> Tensor:
    """Compare the logits of N tokens, [N, V] each: [N, 6] in the order of ``NAMES``.

    With p the teacher's softmax and q the policy's, in float32 (float64 for float64 logits):

        forward_kl      KL(p | q)                                   nats, at least 0
        reverse_kl      KL(q | p)                                   nats, at least 0
        jsd             (KL(p | m) + KL(q | m)) / 2, m = (p + q)/2  nats, 0 to ln 2
        top1_agreement  1 where both put the same token first, else 0
        top5_overlap    how many of the five likeliest tokens they share, by five
        centred_cosine  cosine of the logits, each less its mean over the vocabulary: what is added to all
                        logits alike changes no probability, and dominates a plain cosine
    """
    wide = torch.promote_types(torch.promote_types(policy.dtype, teacher.dtype), torch.float32)
    policy, teacher = policy.to(wide), teacher.to(wide)
    log_q, log_p = policy.log_softmax(-1), teacher.log_softmax(-1)
    forward, reverse, jsd = (
        log_divergence(log_p, log_q, Measure(kind)) for kind in ("forward_kl", "reverse_kl", "jsd")
    )
    k = min(TOP_K, policy.shape[-1])
    best_q, best_p = policy.topk(k).indices, teacher.topk(k).indices
    overlap = (best_q[:, :, None] == best_p[:, None, :]).any(-1).to(wide).mean(-1)
    cosine = nn.functional.cosine_similarity(
        policy - policy.mean(-1, keepdim=True), teacher - teacher.mean(-1, keepdim=True), dim=-1
    )
    same = (policy.argmax(-1) == teacher.argmax(-1)).to(wide)
    # Rounding alone takes a divergence of equal distributions below 0. A NaN stays one.
    return torch.stack(
        [forward.clamp(min=0), reverse.clamp(min=0), jsd.clamp(min=0), same, overlap, cosine], dim=1
    )


@torch.no_grad()
def token_sums(policy: nn.Module, teacher: nn.Module, batch: CompletionBatch, vocab_size: int) -> np.ndarray:
    """``distances`` summed over the response tokens of each row: float64 [B, 6].

    Only the first ``vocab_size`` columns count, len(tokenizer): the rest is padding of the vocabulary.
    """
    (states_q, head_q), (states_p, head_p) = (_states_and_head(model, batch) for model in (policy, teacher))
    rows = max(1, LOGIT_BYTES // (4 * vocab_size))
    pieces = [
        distances(head_q(q)[:, :vocab_size], head_p(p)[:, :vocab_size])
        for q, p in zip(states_q.split(rows), states_p.split(rows), strict=True)
    ]
    per_token = torch.cat(pieces).double().cpu().numpy()
    row_of = batch.completion_mask.bool().nonzero()[:, 0].cpu().numpy()
    sums = np.zeros((len(batch.completion_mask), len(NAMES)))
    np.add.at(sums, row_of, per_token)
    return sums


def _states_and_head(model: nn.Module, batch: CompletionBatch) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """What the model predicts the response tokens from, [N, …], and what makes logits of it."""
    if not head_obstacle(model):
        return states_before(model, batch, shared=obstacle(model) is None), output_head(model)
    # Its logits are more than a head applied to states: they are made by the model, row by row.
    logits = []
    for row in range(len(batch.prompt_ids)):
        prompt = batch.prompt_ids[row][batch.prompt_mask[row].bool()]
        completion = batch.completion_ids[row][batch.completion_mask[row].bool()]
        ids = torch.cat([prompt, completion])[None]
        output = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        logits.append(output.logits[0, len(prompt) - 1 : -1])
    return torch.cat(logits), lambda piece: piece


def compare_with_teacher(
    policy: nn.Module,
    teacher: Teacher,
    prompts: Sequence[Sequence[int]],
    texts: Mapping[str, Sequence[Sequence[int] | None]],
    rng: np.random.Generator,
    progress: Callable[[list], Any] = iter,
) -> dict[str, Any]:
    """Compare a policy with its teacher on one or more texts per item.

    Args:
        prompts: token ids of each item's prompt.
        texts: name -> the token ids that follow each prompt, None where an item has no such text.
        rng: of the bootstrap intervals.

    Returns:
        Name of the text -> ``summary`` of it. Left out, and counted, are items without the text, those longer
        than the positions of either model, and those with tokens beyond the tokenizer.

    Raises UserError where a model's logits are not finite.
    """
    limit = min(map(_positions, (policy, teacher.model)))
    # A text that occurs under several names (an answer that is the gold text) is run once.
    rows: dict[tuple[int, tuple[int, ...]], list[str]] = {}
    left_out = dict.fromkeys(texts, 0)
    for name, of_items in texts.items():
        for item, text in enumerate(of_items):
            fits = text is not None and len(prompts[item]) + len(text) <= limit
            if fits and max([*prompts[item], *text], default=0) < teacher.vocab_size:
                rows.setdefault((item, tuple(text)), []).append(name)
            else:
                left_out[name] += 1
    # Prompts of similar length run together, the texts of one prompt side by side.
    order = sorted(rows, key=lambda row: (len(prompts[row[0]]), row[0]))
    device = next(policy.parameters()).device
    sums: dict[str, list[np.ndarray]] = {name: [] for name in texts}
    counts: dict[str, list[int]] = {name: [] for name in texts}
    for start, end in progress(list(_slices([len(prompts[item]) + len(text) for item, text in order]))):
        part = order[start:end]
        batch = CompletionBatch.of([prompts[item] for item, _ in part], [text for _, text in part], device)
        found = token_sums(policy, teacher.model, batch, teacher.vocab_size)
        for (item, text), row in zip(part, found, strict=True):
            if not np.isfinite(row).all():
                raise UserError(
                    f"policy or teacher {teacher.name} gave logits that are not finite for item {item}: "
                    f"check the weights, or set model.torch_dtype: float32; {WITHOUT}"
                )
            for name in rows[item, text]:
                sums[name].append(row)
                counts[name].append(len(text))
    return {name: summary(sums[name], counts[name], rng) | {"left_out": left_out[name]} for name in texts}


def summary(sums: Sequence[np.ndarray], tokens: Sequence[int], rng: np.random.Generator) -> dict[str, Any]:
    """Means over all tokens with bootstrap intervals over items.

    Returns ``items`` and ``tokens`` that were compared and, unless there are none, each of ``NAMES`` as
    {"value", "ci95", "n"} with n items; the interval is null for a single item.
    """
    tokens = np.asarray(tokens, dtype=float)
    result: dict[str, Any] = {"items": len(tokens), "tokens": int(tokens.sum())}
    if not tokens.sum():
        return result
    table = np.stack(sums)
    means = table.sum(0) / tokens.sum()
    ends = bootstrap_ratios(table, tokens, rng) if len(tokens) > 1 else [None] * len(NAMES)
    for name, mean, ci95 in zip(NAMES, means, ends, strict=True):
        result[name] = {
            "value": float(mean),
            "ci95": None if ci95 is None else [float(end) for end in ci95],
            "n": len(tokens),
        }
    return result


def _positions(model: nn.Module) -> float:
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or math.inf


def _slices(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Cut rows into consecutive parts of at most ``SLICE_TOKENS`` tokens once padded, of one row at least."""
    starts, longest = [0], 0
    for row, length in enumerate(lengths):
        longest = max(longest, length)
        if row > starts[-1] and longest * (row + 1 - starts[-1]) > SLICE_TOKENS:
            starts.append(row)
            longest = length
    return pairwise([*starts, len(lengths)] if lengths else [])


def teacher_lines(metrics: Mapping[str, Any]) -> list[str]:
    """What the stage says of the comparison: a line per text."""
    lines = []
    for name, title in (("on_responses", "its own answers"), ("on_gold", "the gold text")):
        part = metrics[name]
        left = f", {part['left_out']} items left out (too long, or no text)" if part["left_out"] else ""
        if not part["tokens"]:
            lines.append(f"  against the teacher on {title}: nothing to compare{left}")
            continue
        agreement, *nats = (
            part[key]["value"] for key in ("top1_agreement", "forward_kl", "reverse_kl", "jsd")
        )
        lines.append(
            f"  against the teacher on {title}: agreement {100 * agreement:.1f} %, forward KL {nats[0]:.4g}, "
            f"reverse KL {nats[1]:.4g}, JSD {nats[2]:.4g} nats per token "
            f"({part['tokens']} tokens of {part['items']} items{left})"
        )
    return lines
