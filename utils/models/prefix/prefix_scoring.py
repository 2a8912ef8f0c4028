"""Per-token scores of completions over shared prefixes: log-probability, entropy, teacher's Q and V."""

import functools
import inspect
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.utils import ModelOutput

from utils.models.prefix.shared_prefix import (
    CompletionBatch,
    completion_states,
    head_obstacle,
    obstacle,
    output_head,
    unwrapped,
)

LOGIT_BYTES = 2**26  # float32 logits held at once


@dataclass
class TokenScores(ModelOutput):
    """Scores of N completion tokens, float32 [N] each, from the logits f divided by the temperature T.

    logit      f(a)/T of the token a that was chosen; for a teacher, Q = T * logit
    logsumexp  log sum_b exp(f(b)/T); for a teacher, V = T * logsumexp
    entropy    of the softmax of f/T, in nats; None unless asked for
    value      of the state before the token, by the model's value head; None unless asked for

    A float64 model gets float64 scores.
    """

    logit: Tensor | None = None
    logsumexp: Tensor | None = None
    entropy: Tensor | None = None
    value: Tensor | None = None

    @property
    def log_prob(self) -> Tensor:
        """Log-probability of the chosen token, float32 [N]."""
        return self.logit - self.logsumexp


def token_scores(
    head: Callable[[Tensor], Tensor],
    states: Tensor,
    tokens: Tensor,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
    vocab_size: int | None = None,
) -> TokenScores:
    """Score chosen tokens, int64 [N], from the states before them, [N, H], in pieces (`in_pieces`).

    `vocab_size` drops the columns beyond the tokenizer.
    """

    def score(states: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
        logits = wide_logits(head, states, vocab_size)
        if temperature != 1.0:
            logits = logits / temperature
        logsumexp = logits.logsumexp(-1)
        found = logits.gather(-1, tokens[:, None]).squeeze(-1), logsumexp
        return (*found, logsumexp - (logits.softmax(-1) * logits).sum(-1)) if entropy else found

    return TokenScores(*in_pieces(score, head, states, tokens))


def wide_logits(head: Callable[[Tensor], Tensor], states: Tensor, vocab_size: int | None) -> Tensor:
    """The tokenizer's logits, [N, vocab_size], in float32 at least."""
    logits = head(states)[:, :vocab_size]
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def in_pieces(
    function: Callable[..., tuple[Tensor, ...]], head: nn.Module, states: Tensor, *others: Tensor
) -> tuple[Tensor, ...]:
    """Results of ``function`` on pieces of [N, ...] tensors whose logits stay below `LOGIT_BYTES`, computed
    again in the backward pass where there is more than one."""
    width = getattr(head, "out_features", None) or head.weight.shape[0]
    rows = max(1, LOGIT_BYTES // (4 * width))
    if len(states) <= rows:
        return function(states, *others)
    pieces = zip(*(tensor.split(rows) for tensor in (states, *others)), strict=True)
    if torch.is_grad_enabled():
        found = [checkpoint(function, *piece, use_reentrant=False) for piece in pieces]
    else:
        found = [function(*piece) for piece in pieces]
    return tuple(torch.cat(part) for part in zip(*found, strict=True))


def padded_parts(lengths: Sequence[int], most: int) -> list[slice]:
    """Consecutive parts of rows of these lengths: at most ``most`` tokens once padded, one row at least."""
    starts, longest = [0], 0
    for row, length in enumerate(lengths):
        longest = max(longest, length)
        if row > starts[-1] and longest * (row + 1 - starts[-1]) > most:
            starts.append(row)
            longest = length
    return [slice(*ends) for ends in pairwise([*starts, len(lengths)])] if lengths else []


def full_states(model: nn.Module, batch: CompletionBatch) -> Tensor:
    """As `completion_states`, from one forward pass over whole sequences: for models that cannot share.

    Every prompt is encoded once per completion. Works under gradient checkpointing and with any attention.
    """
    model = unwrapped(model)
    ids = torch.cat([batch.prompt_ids, batch.completion_ids], dim=1)
    mask = torch.cat([batch.prompt_mask, batch.completion_mask], dim=1)
    positions = {}
    if "position_ids" in inspect.signature(model.base_model.forward).parameters:
        counted = mask if batch.positions == "content" else torch.ones_like(mask)
        positions["position_ids"] = (counted.cumsum(1) - 1).clamp(min=0)
    output = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False, **positions)
    before = output.last_hidden_state[:, batch.prompt_ids.shape[1] - 1 : -1]
    return before[batch.completion_mask.bool()]


def states_before(model: nn.Module, batch: CompletionBatch, shared: bool = True) -> Tensor:
    """The hidden states before the unmasked completion tokens, [N, H], over shared prefixes or full rows."""
    return completion_states(model, batch) if shared else full_states(model, batch)


def states_and_head(model: nn.Module, batch: CompletionBatch) -> tuple[Tensor, nn.Module]:
    """What the model predicts the completion tokens from, [N, ...], and what makes logits of it.

    Logits that are more than a head applied to states are made by the model, row by row.
    """
    if not head_obstacle(model):
        shared = obstacle(model) is None
        return states_before(model, batch, shared), output_head(model)
    logits = []
    limits = "logits_to_keep" in inspect.signature(unwrapped(model).forward).parameters
    for row in batch.split(1):
        tokens = row.tokens()
        ids = torch.cat([row.prompt_ids[row.prompt_mask.bool()], tokens])[None, :-1]
        kept = {"logits_to_keep": len(tokens)} if limits else {}
        output = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **kept)
        logits.append(output.logits[0, output.logits.shape[1] - len(tokens) :])
    head = nn.Identity()
    head.out_features = logits[0].shape[-1]
    return torch.cat(logits), head


def score_completions(
    model: nn.Module,
    batch: CompletionBatch,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
    value: bool = False,
    value_trunk: bool = True,
    shared: bool = True,
    vocab_size: int | None = None,
) -> TokenScores:
    """Score every unmasked completion token of `batch`; see `TokenScores`, `completion_states` (for errors).

    `batch.scatter` brings each [N] result to [B, C]. Differentiable; wrap in `torch.no_grad()` for a frozen
    model. `value` asks the model's `value_head`, whose gradient ends there unless `value_trunk`;
    `shared=False` runs whole sequences.
    """
    before = states_before(model, batch, shared)
    scores = token_scores(
        output_head(model),
        before,
        batch.tokens(),
        temperature=temperature,
        entropy=entropy,
        vocab_size=vocab_size,
    )
    if value:
        scores.value = unwrapped(model).value_head(before if value_trunk else before.detach())
    return scores


def accept_shared_prefix(model: nn.Module) -> None:
    """Let `model(shared_prefix=batch, temperature=…, entropy=…)` return `TokenScores`; other calls stay.

    Takes the keywords of `score_completions`. Wrappers (PEFT, DDP, autocast) then see one ordinary forward
    pass, so that their hooks run, value head included. Patches the instance, below its PEFT wrapper if it has
    one, as TRL's fused head does.
    """
    model = unwrapped(model)
    original = model.forward

    # The unbound signature, since `generate` validates its arguments against the bound one.
    @functools.wraps(type(model).forward)
    def forward(self, *args, shared_prefix=None, **kwargs):
        if shared_prefix is None:
            return original(*args, **kwargs)
        scored = {name: value for name, value in kwargs.items() if value is not None}  # PEFT adds some None
        return score_completions(self, shared_prefix, **scored)

    model.forward = types.MethodType(forward, model)
