"""Encode each distinct prompt once and run only the completions on top of it.

Rollouts of one prompt share everything up to its last token, so the forward pass of B rollouts splits in two:
the D distinct prompts fill a key-value cache, then the completions attend to that cache and to themselves.
The state before a completion's first token is the prompt's last state; the states before its later tokens
are those of the completion tokens preceding them. Values and gradients equal those of the B full sequences
(Prefix Grouper, arXiv 2506.05433, Lemma 2.1), since the gradient flows back through the cache.

Several completions of a prompt are laid side by side in one row, told apart by a block-diagonal causal
mask, as long as they stay short next to the prompt; the cache is then repeated once a row instead of once a
completion.
"""

import contextlib
import copy
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

BATCH = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")  # a batch's tensors
MASKED_ATTENTION = ("sdpa", "eager")  # implementations that take a four-dimensional attention mask
PASS_COST, PASS_COST_GPU = 2**8, 2**12  # what one more pass over the layers costs, in tokens


@dataclass(frozen=True)
class CompletionBatch:
    """B rollouts: prompts padded on the left, completions padded on the right.

    prompt_ids, prompt_mask          int64 [B, P]; the last column holds a real token in every row
    completion_ids, completion_mask  int64 [B, C]; a row may be masked entirely
    positions                        how position ids count: "content" from the first real prompt token (as
                                     in generation), "column" from the first column, padding included (as in
                                     TRL's scoring); they differ for learned absolute positions (GPT-2) only
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    completion_ids: Tensor
    completion_mask: Tensor
    positions: Literal["content", "column"] = "content"

    @classmethod
    def of(
        cls, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], device: torch.device
    ) -> "CompletionBatch":
        """Pad B prompts on the left and B completions on the right, given as token ids; padding holds 0.

        There is one column at least, whatever the completions.
        """
        wide, long = max(map(len, prompts)), max(1, *map(len, completions))

        def padded(rows: Sequence[Sequence[int]]) -> Tensor:
            return torch.tensor(rows, dtype=torch.long, device=device).reshape(len(prompts), -1)

        return cls(
            padded([[0] * (wide - len(ids)) + [*ids] for ids in prompts]),
            padded([[0] * (wide - len(ids)) + [1] * len(ids) for ids in prompts]),
            padded([[*ids] + [0] * (long - len(ids)) for ids in completions]),
            padded([[1] * len(ids) + [0] * (long - len(ids)) for ids in completions]),
        )

    @classmethod
    def within(cls, tensors: Mapping[str, Tensor]) -> "CompletionBatch":
        """The batch whose tensors stand among others under their names, as in a trainer's rollout."""
        return cls(*(tensors[name] for name in BATCH))

    def take(self, rows: Tensor | Sequence[int]) -> "CompletionBatch":
        """Some of the rollouts, with the padding they have."""
        return replace(self, **{name: getattr(self, name)[rows] for name in BATCH})

    def split(self, size: int) -> Iterator["CompletionBatch"]:
        """`size` rollouts after the other."""
        for rows in torch.arange(len(self.prompt_ids)).split(size):
            yield self.take(rows)

    def tokens(self) -> Tensor:
        """Return the N unmasked completion tokens, int64 [N], row after row."""
        return self.completion_ids[self.completion_mask.bool()]

    def scatter(self, values: Tensor) -> Tensor:
        """Spread per-token values [N, ...], aligned with `tokens()`, to [B, C, ...]; the rest is 0."""
        spread = values.new_zeros((*self.completion_mask.shape, *values.shape[1:]))
        spread[self.completion_mask.bool()] = values
        return spread


# ------------------------------------------------------------------------------------------ applicability


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the causal language model inside a PEFT wrapper, its adapters in place; other models as is."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def position_limit(model: nn.Module) -> float:
    """How many tokens the model has positions for; infinite where its configuration names no limit."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or math.inf


def drops_cache(model: nn.Module) -> bool:
    """Return whether the model recomputes activations when it trains, which leaves its cache empty."""
    return model.training and getattr(model, "is_activation_checkpointing", False)


@contextlib.contextmanager
def evaluating(*models: nn.Module | None) -> Iterator[None]:
    """Evaluation mode: without gradients, gradient checkpointing would only drop the shared prefixes."""
    training = [model for model in models if model is not None and model.training]
    for model in training:
        model.eval()
    try:
        yield
    finally:
        for model in training:
            model.train()


def obstacle(model: nn.Module) -> str | None:
    """Return why `model` cannot share prefixes, as a clause for a message, or None where it can."""
    if reason := head_obstacle(model):
        return reason
    model = unwrapped(model)
    config = model.config
    if config._attn_implementation not in MASKED_ATTENTION:
        allowed = " or ".join(MASKED_ATTENTION)
        return f"attention {config._attn_implementation!r} takes no custom mask (use {allowed})"
    accepted = inspect.signature(model.base_model.forward).parameters
    missing = [name for name in ("attention_mask", "position_ids", "past_key_values") if name not in accepted]
    if missing or getattr(config, "alibi", False):
        return f"its forward takes no {missing[0] if missing else 'position_ids'}"
    if any(type(layer) is not DynamicLayer for layer in DynamicCache(config=config).layers):
        return "its cache keeps less than every past key"
    return None


def head_obstacle(model: nn.Module) -> str | None:
    """Return why `model` is more than a text backbone below a linear head, or None where it is just that."""
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        return "its adapter learns virtual prompt tokens"
    model = unwrapped(model)
    config = model.config
    if config.is_encoder_decoder:
        return "it is an encoder-decoder"
    if config.get_text_config() is not config:
        return "it takes more than text"
    if model.base_model is model or model.get_output_embeddings() is None:
        return "it has no separate language-model head"
    # A head followed by a scale or a cap cannot be applied by calling the output embeddings alone.
    for name in (
        "final_logit_softcapping",
        "logit_scale",
        "logits_scaling",
        "output_multiplier",
        "lm_head_multiplier",
    ):
        if getattr(config, name, None) is not None:
            return f"it rescales its logits ({name})"
    return None


# --------------------------------------------------------------------------------------------- the layout


@dataclass(frozen=True)
class PromptGroups:
    """The D distinct prompts of a batch, by first appearance, without the columns that are all padding."""

    ids: Tensor  # int64 [D, P']
    mask: Tensor  # bool [D, P']
    trimmed: int  # columns dropped on the left, P - P'
    group: list[int]  # length B: the prompt of each row


def group_prompts(prompt_ids: Tensor, prompt_mask: Tensor) -> PromptGroups:
    """Group identical prompts: int64 [B, P] ids and mask, left-padded; what the padding holds is ignored.

    Raises ValueError where a row's last column is masked (an empty prompt, or padding on the right).
    """
    mask = prompt_mask.bool()
    if not bool(mask[:, -1].all()):
        raise ValueError("prompts must be padded on the left and hold at least one token")
    rows = prompt_ids.masked_fill(~mask, -1).cpu().numpy()
    seen: dict[bytes, int] = {}
    group = [seen.setdefault(row.tobytes(), len(seen)) for row in rows]
    first = torch.tensor([group.index(g) for g in range(len(seen))], device=prompt_ids.device)
    ids, mask = prompt_ids[first], mask[first]
    trimmed = int(mask.any(0).int().argmax())
    return PromptGroups(ids[:, trimmed:], mask[:, trimmed:], trimmed, group)


class Packing(NamedTuple):
    """Where each of B completions lies in R rows."""

    row: list[int]  # length B
    offset: list[int]  # length B, the column of its first token
    prompt: list[int]  # length R, the prompt that a row's completions share
    width: list[int]  # length R, tokens of a row


def pack(lengths: list[int], group: list[int], capacity: int) -> Packing:
    """Lay completions of the same prompt side by side in rows of at most `capacity` tokens, longest first,
    each in the first row that has room for it (first-fit decreasing).

    Empty completions take no room and open no row; one longer than the capacity gets a row of its own.
    """
    packing = Packing([0] * len(lengths), [0] * len(lengths), [], [])
    rows: dict[int, list[int]] = {}  # of each prompt
    for item in sorted(range(len(lengths)), key=lambda item: (group[item], -lengths[item])):
        length, own = lengths[item], rows.setdefault(group[item], [])
        if not length:
            continue
        row = next((row for row in own if packing.width[row] + length <= capacity), len(packing.width))
        if row == len(packing.width):
            own.append(row)
            packing.prompt.append(group[item])
            packing.width.append(0)
        packing.row[item], packing.offset[item] = row, packing.width[row]
        packing.width[row] += length
    return packing


def batches_by_width(widths: Sequence[int], pass_cost: int) -> list[list[int]]:
    """Divide rows of these widths into batches, each padded to its widest row. Widest rows come first.

    The division is the cheapest one: a batch costs its tokens, padding included, and ``pass_cost`` tokens.
    """
    order = sorted(range(len(widths)), key=lambda row: -widths[row])
    ends = [end for end in range(1, len(order)) if widths[order[end]] < widths[order[end - 1]]]
    cheapest, start_of = {0: 0}, {}  # the cost of the first rows of the order; where their last batch starts
    for end in [*ends, len(order)] if order else []:
        cost = {start: cheapest[start] + (end - start) * widths[order[start]] for start in cheapest}
        start_of[end] = min(cost, key=cost.__getitem__)
        cheapest[end] = cost[start_of[end]] + pass_cost
    batches, end = [], len(order)
    while end:
        batches.append(sorted(order[start_of[end] : end]))
        end = start_of[end]
    return batches[::-1]


@dataclass(frozen=True)
class PackedRows:
    """What the completion passes run, R rows of W tokens, and where each scored token's state will be.

    ids     int64 [R, W]
    owner   int64 [R, W], the completion each token belongs to, -1 on padding
    step    int64 [R, W], the token's place in its completion
    prompt  length R, the distinct prompt of each row
    passes  the rows of each pass, and how many columns of them it runs
    source  int64 [N], into the D prompt states followed by the row states of one pass after the other
    """

    ids: Tensor
    owner: Tensor
    step: Tensor
    prompt: list[int]
    passes: list[tuple[list[int], int]]
    source: Tensor


def lay_out(batch: CompletionBatch, groups: PromptGroups) -> PackedRows:
    """Pack the completions. Raises ValueError where they are not padded on the right.

    The last token of a completion predicts nothing that is scored, so it is not run.
    """
    mask = batch.completion_mask.bool()
    device, width = mask.device, mask.shape[1]
    lengths = mask.sum(1, keepdim=True)
    if not torch.equal(mask, torch.arange(width, device=device) < lengths):
        raise ValueError("completions must be padded on the right")
    inputs = (lengths - 1).clamp(min=0)
    counts = inputs.squeeze(1).tolist()
    # Side by side, completions spend attention on each other's masked keys: up to half a prompt's worth.
    capacity = max(*counts, groups.ids.shape[1] // 2)
    packing = pack(counts, groups.group, capacity)

    step = torch.arange(width - 1, device=device).expand(len(mask), -1)
    real = step < inputs
    row = torch.tensor(packing.row, device=device)[:, None].expand_as(step)[real]
    column = (torch.tensor(packing.offset, device=device)[:, None] + step)[real]
    shape = (len(packing.width), max(packing.width, default=0))
    ids, steps = batch.completion_ids.new_zeros((2, *shape))
    ids[row, column] = batch.completion_ids[:, :-1][real]
    steps[row, column] = step[real]
    owner = torch.full(shape, -1, device=device)
    owner[row, column] = torch.arange(len(mask), device=device)[:, None].expand_as(step)[real]

    divided = batches_by_width(packing.width, PASS_COST if device.type == "cpu" else PASS_COST_GPU)
    passes = [(rows, max(packing.width[row] for row in rows)) for rows in divided]
    # Where each row's states start; where those so far end.
    first, end = [0] * len(packing.width), len(groups.ids)
    for rows, columns in passes:
        for number in rows:
            first[number] = end
            end += columns
    source = torch.zeros(mask.shape, dtype=torch.long, device=device)
    source[:, 0] = torch.tensor(groups.group, device=device)
    source[:, 1:][real] = torch.tensor(first, dtype=torch.long, device=device)[row] + column
    return PackedRows(ids, owner, steps, packing.prompt, passes, source[mask])


def attention_mask(allowed: Tensor, model: nn.Module) -> Tensor:
    """Turn bool [R, W, K] (query may see key) into the four-dimensional mask the attention takes."""
    mask = allowed.unsqueeze(1)
    if model.config._attn_implementation == "eager":  # adds its mask to the scores
        return torch.zeros_like(mask, dtype=model.dtype).masked_fill(~mask, torch.finfo(model.dtype).min)
    return mask


# ---------------------------------------------------------------------------------------------- the pass


def content_positions(groups: PromptGroups) -> Tensor:
    """Return position ids that count real tokens only, int64 [D, P']; padding gets 0."""
    return (groups.mask.long().cumsum(1) - 1).clamp(min=0)


def encode_prompts(
    model: nn.Module, groups: PromptGroups, position_ids: Tensor, cache: DynamicCache
) -> Tensor:
    """Fill `cache` with the distinct prompts. Returns the state after each prompt's last token, [D, H]."""
    output = model.base_model(
        input_ids=groups.ids,
        attention_mask=groups.mask.long(),
        position_ids=position_ids,
        past_key_values=cache,
        use_cache=True,
    )
    return output.last_hidden_state[:, -1]


def completion_states(model: nn.Module, batch: CompletionBatch) -> Tensor:
    """Return the hidden state before each unmasked completion token.

    Shape [N, H], aligned with `batch.tokens()`, in the model's dtype: row n is the final (normed) hidden
    state from which the model predicts token n, so it serves log-probabilities, a value head and teacher
    scores alike. `model` is a causal language model, with or without PEFT adapters. Differentiable.

    Raises ValueError where a mask is not left-padded (prompts) or right-padded (completions), where
    `obstacle(model)` names one, or where gradient checkpointing would drop the cache.
    """
    if reason := obstacle(model):
        raise ValueError(f"the model cannot share prefixes: {reason}")
    model = unwrapped(model)
    if torch.is_grad_enabled() and drops_cache(model):
        raise ValueError("shared prefixes need a cache, which gradient checkpointing drops")
    groups = group_prompts(batch.prompt_ids, batch.prompt_mask)
    packed = lay_out(batch, groups)
    if batch.positions == "content":
        prompt_positions = content_positions(groups)
    else:
        columns = torch.arange(groups.trimmed, batch.prompt_ids.shape[1], device=groups.ids.device)
        prompt_positions = columns.expand_as(groups.ids)

    cache = DynamicCache(config=model.config)
    found = [encode_prompts(model, groups, prompt_positions, cache)]
    for rows, width in packed.passes:
        prompts = [packed.prompt[row] for row in rows]
        past = copied(cache) if len(packed.passes) > 1 else cache
        if prompts != list(range(len(groups.ids))):
            past.batch_select_indices(torch.tensor(prompts))  # layers may lie on several devices
        owner = packed.owner[rows, :width]
        own = owner[:, :, None] == owner[:, None, :]
        own &= torch.ones(width, width, dtype=torch.bool, device=own.device).tril()
        seen = groups.mask[prompts][:, None].expand(-1, width, -1)
        output = model.base_model(
            input_ids=packed.ids[rows, :width],
            attention_mask=attention_mask(torch.cat([seen, own], dim=2), model),
            position_ids=prompt_positions[prompts, -1:] + 1 + packed.step[rows, :width],
            past_key_values=past,
            use_cache=True,
        )
        found.append(output.last_hidden_state.flatten(0, 1))
    return torch.cat(found).index_select(0, packed.source)


def copied(cache: DynamicCache) -> DynamicCache:
    """A cache that selects and grows on its own; the keys and values that it starts with are not copied."""
    twin = copy.copy(cache)
    twin.layers = [copy.copy(layer) for layer in cache.layers]
    return twin


def output_head(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the map from hidden states [..., H] to logits [..., V]."""
    return unwrapped(model).get_output_embeddings()
