"""Sample completions with each distinct prompt encoded, and its keys and values held, once.

The completions of a prompt decode side by side in one cache row: at every step the row takes one token per
unfinished completion, and a mask lets each see the prompt and its own tokens only. The cache then holds each
prompt once instead of once per completion, a decoding step reads it once, and completions that finish leave
the row without the cache being moved.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from utils.models.prefix.common_prefix import encode_by_prefix
from utils.models.prefix.shared_prefix import (
    attention_mask,
    content_positions,
    drops_cache,
    encode_prompts,
    group_prompts,
    obstacle,
    output_head,
    pack,
    unwrapped,
)

NOBODY = -1  # owner of a cache column that no completion may see
ROW_PROMPTS = 8  # a cache row takes completions for up to this many times the prompt's length


@dataclass(frozen=True)
class Completions:
    """Sampled completions of B prompts, padded on the right to the longest.

    ids        int64 [B, C], up to and including the first end-of-sequence token, then the padding token
    mask       int64 [B, C], 1 on sampled tokens
    log_probs  float32 [B, C], of the sampled tokens under softmax(logits / temperature) before any truncation
               (temperature 1 where decoding is greedy), 0 on padding; None unless asked for
    """

    ids: Tensor
    mask: Tensor
    log_probs: Tensor | None

    def token_lists(self) -> list[list[int]]:
        """Return the sampled tokens of each row as a plain list."""
        lengths = self.mask.sum(1).tolist()
        return [row[:length] for row, length in zip(self.ids.tolist(), lengths, strict=True)]


class GrowingLayer(DynamicLayer):
    """A cache layer that writes into spare room at its end, enlarged by half whenever it runs out."""

    def __init__(self, full: DynamicLayer):
        super().__init__()
        self.lazy_initialization(full.keys, full.values)
        self.length = full.keys.shape[2]
        self.keys, self.values = full.keys, full.values

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        end = self.length + key_states.shape[2]
        if end > self.keys.shape[2]:
            self.keys, self.values = (self._enlarged(old, end) for old in (self.keys, self.values))
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def _enlarged(self, old: Tensor, end: int) -> Tensor:
        new = old.new_empty((*old.shape[:2], end + end // 2, old.shape[3]))
        new[:, :, : self.length] = old[:, :, : self.length]
        return new

    def get_seq_length(self) -> int:
        return self.length


def sampling_noise(count: int, max_new_tokens: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw the randomness of `count` completions: float64 [count, max_new_tokens] in [0, 1), on the CPU."""
    return torch.rand((count, max_new_tokens), generator=generator, dtype=torch.float64)


@torch.no_grad()
def sample_completions(
    model: nn.Module,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    *,
    max_new_tokens: int,
    eos_token_ids: list[int],
    pad_token_id: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
    log_probs: bool = False,
    common_prefixes: bool = False,
    vocab_size: int | None = None,
) -> Completions:
    """Sample one completion per row of prompts; repeat a prompt's row G times for a group of G.

    prompt_ids, prompt_mask: int64 [B, P], left-padded. Temperature 0 is greedy; `top_k` 0 and `top_p` 1
    switch the truncations off, which apply in the order temperature, top-k, top-p (as in Transformers).
    Randomness is drawn beforehand from `generator` (on the CPU), one number per row and step, so that a
    row's completion does not depend on when other rows finish; or it is given as `noise`, float64
    [B, max_new_tokens] (`sampling_noise`), of which processes that share a batch take their rows. Decodes in
    the mode (train or eval) the model is in. `common_prefixes` also encodes once what different prompts
    begin with (`common_prefix.py`): the same values up to rounding, so rollouts, whose bytes are to last, go
    without.

    `vocab_size` is len(tokenizer): the logit columns beyond it are padding (Qwen2.5 has hundreds) and are
    never sampled. As with the truncations, `log_probs` stay those over all columns, like those of training.

    Raises ValueError where the prompts are not left-padded, a setting is out of range, or the model cannot
    share prefixes (`shared_prefix.obstacle`); FloatingPointError where logits are not finite.
    """
    if temperature < 0 or not 0 < top_p <= 1 or top_k < 0 or max_new_tokens < 1:
        raise ValueError("need temperature >= 0, 0 < top_p <= 1, top_k >= 0 and max_new_tokens >= 1")
    if noise is not None and noise.shape != (len(prompt_ids), max_new_tokens):
        raise ValueError(f"noise {tuple(noise.shape)} is not [prompts, max_new_tokens]")
    if reason := obstacle(model):
        raise ValueError(f"the model cannot share prefixes: {reason}")
    model, head = unwrapped(model), output_head(model)
    if drops_cache(model):
        raise ValueError("sampling needs a cache, which gradient checkpointing drops")

    device, batch = prompt_ids.device, len(prompt_ids)
    groups = group_prompts(prompt_ids, prompt_mask)
    cache = DynamicCache(config=model.config)
    encoded = encode_by_prefix(model, groups, cache) if common_prefixes else None
    if encoded is None:
        states, seen = encode_prompts(model, groups, content_positions(groups), cache), groups.mask
    else:
        states, seen = encoded
    # In one row, completions spend attention on each other's masked keys: very long ones get their own row.
    capacity = max(max_new_tokens, ROW_PROMPTS * groups.ids.shape[1])
    packing = pack([max_new_tokens] * batch, groups.group, capacity)
    if len(packing.prompt) > len(groups.ids):
        cache.batch_select_indices(torch.tensor(packing.prompt, device=device))
    cache.layers = [GrowingLayer(layer) for layer in cache.layers]

    ids = torch.full((batch, max_new_tokens), pad_token_id, dtype=torch.long, device=device)
    scores = torch.zeros((batch, max_new_tokens), device=device) if log_probs else None
    lengths = torch.zeros(batch, dtype=torch.long, device=device)
    eos = torch.tensor(eos_token_ids, dtype=torch.long, device=device)
    if temperature > 0:
        noise = (sampling_noise(batch, max_new_tokens, generator) if noise is None else noise).to(device)

    rows = DecodingRows(model, cache, torch.tensor(packing.row, device=device), seen[packing.prompt])
    logits = head(states)[torch.tensor(groups.group, device=device)]
    for step in range(max_new_tokens):
        active = rows.active
        logits = logits.float()
        finite = logits.amax(-1).isfinite()
        if not bool(finite.all()):
            raise FloatingPointError(
                f"non-finite logits for token {step} of completions {active[~finite].tolist()}"
            )
        if temperature > 0:
            logits = logits / temperature
            tokens = draw(truncate(logits[:, :vocab_size], top_p, top_k), noise[active, step])
        else:
            tokens = logits[:, :vocab_size].argmax(-1)
        ids[active, step] = tokens
        lengths[active] += 1
        if scores is not None:
            scores[active, step] = logits.log_softmax(-1).gather(-1, tokens[:, None]).squeeze(-1)
        going = ~torch.isin(tokens, eos)
        if not bool(going.all()):
            rows.keep(going)
            tokens = tokens[going]
        if step + 1 == max_new_tokens or not len(tokens):
            break
        logits = head(rows.advance(tokens))

    longest = int(lengths.max())
    mask = (torch.arange(longest, device=device) < lengths[:, None]).long()
    return Completions(ids[:, :longest], mask, None if scores is None else scores[:, :longest])


class DecodingRows:
    """Which completion decodes where: the layout of a step, and the mask over the cache's columns."""

    def __init__(self, model: nn.Module, cache: DynamicCache, row_of: Tensor, prompt: Tensor):
        self.model, self.cache = model, cache
        self.row_of = row_of  # [B], changes when rows are dropped
        self.active = torch.arange(len(row_of), device=row_of.device)  # unfinished completions, ascending
        self.prompt = prompt  # bool [R, P]: prompt columns to be seen
        self.owner = self.active.new_zeros((len(prompt), 0))  # [R, columns after P]
        self.position = prompt.sum(1)  # [R], of the next token
        self._arrange()

    def _arrange(self) -> None:
        """Give every active completion a slot of its row: `slot_owner` [R, W], `flat` [A] into the slots."""
        row = self.row_of[self.active]
        count = torch.bincount(row, minlength=len(self.prompt))
        order = torch.argsort(row, stable=True)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row[order]]
        width = int(count.max())
        self.flat = row * width + rank
        self.slot_owner = torch.full((len(self.prompt), width), NOBODY, device=row.device)
        self.slot_owner.view(-1)[self.flat] = self.active
        # What each slot sees so far; `advance` appends one block of columns a step.
        past = self.owner[:, None, :] == self.slot_owner[:, :, None]
        past &= (self.slot_owner != NOBODY)[:, :, None]
        self.seen = torch.cat([self.prompt[:, None, :].expand(-1, width, -1), past], dim=2)
        self.itself = torch.eye(width, dtype=torch.bool, device=row.device).expand(len(self.prompt), -1, -1)

    def keep(self, going: Tensor) -> None:
        """Drop active completions where `going` (bool [A]) is False, and rows when a quarter are empty."""
        self.active = self.active[going]
        if not len(self.active):
            return
        occupied = torch.bincount(self.row_of[self.active], minlength=len(self.prompt)) > 0
        if int(occupied.sum()) <= 0.75 * len(occupied):
            kept = occupied.nonzero().squeeze(1)
            self.cache.batch_select_indices(kept)
            self.prompt, self.owner, self.position = self.prompt[kept], self.owner[kept], self.position[kept]
            self.row_of = (occupied.cumsum(0) - 1)[self.row_of]
        self._arrange()

    def advance(self, tokens: Tensor) -> Tensor:
        """Run one token (int64 [A]) of every active completion; return the states after them, [A, H]."""
        self.owner = torch.cat([self.owner, self.slot_owner], dim=1)
        self.seen = torch.cat([self.seen, self.itself], dim=2)
        ids = torch.zeros_like(self.slot_owner)
        ids.view(-1)[self.flat] = tokens
        output = self.model.base_model(
            input_ids=ids,
            attention_mask=attention_mask(self.seen, self.model),
            position_ids=self.position[:, None].expand_as(ids),
            past_key_values=self.cache,
            use_cache=True,
        )
        self.position = self.position + 1
        return output.last_hidden_state.flatten(0, 1)[self.flat]


def truncate(logits: Tensor, top_p: float, top_k: int) -> Tensor:
    """Set logits [A, V] outside the `top_k` largest, then outside the nucleus of mass `top_p`, to -inf."""
    if 0 < top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
    if top_p < 1:
        ordered, index = logits.sort(-1)
        outside = ordered.softmax(-1).cumsum(-1) <= 1 - top_p
        outside[:, -1] = False  # the likeliest token always stays
        logits = logits.masked_fill(outside.scatter(-1, index, outside), -torch.inf)
    return logits


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """Draw one token per row of logits [A, V] by inverse transform of `uniform` [A] in [0, 1)."""
    cumulative = logits.softmax(-1).double().cumsum(-1)
    target = uniform[:, None] * cumulative[:, -1:]
    # The right-hand side search steps over tokens of probability 0.
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)
