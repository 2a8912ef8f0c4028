"""Encode what several prompts begin with once: questions on one report all repeat the report.

Prompts are put into sets whose members begin with the same tokens. One pass encodes these prefixes, a row
for each; the cache is then repeated for every prompt of its set, and a second pass runs what follows the
prefix. The values are those of full sequences. `utils.models.prefix.prefix_sampling` decodes from there.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from utils.models.prefix.shared_prefix import (
    PromptGroups,
    attention_mask,
    content_positions,
    encode_prompts,
)

PrefixSet = tuple[list[int], int]  # indices of prompts, and how many first tokens they share


def batches_by_prefix(prompts: Sequence[Sequence[int]], batch_size: int) -> list[list[int]]:
    """Indices of prompts (token ids) in batches of ``batch_size`` at most, prompts of a set next to each
    other, sets by the length of their longest prompt, which keeps padding small."""
    sets = sorted(prefix_sets(prompts), key=lambda found: max(len(prompts[index]) for index in found[0]))
    order = [index for members, _ in sets for index in members]
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def prefix_sets(prompts: Sequence[Sequence[int]]) -> list[PrefixSet]:
    """Put prompts (token ids) into sets so that as few tokens as possible are left to encode.

    A prefix leaves every prompt of its set a token at least, and is half of the longest one at least: a few
    words of instruction in common are not worth a place in the same row. A prompt on its own is a set whose
    prefix is all but its last token. Within these rules, and among sets of prompts that follow each other in
    the order of their tokens, the division is the best one.
    """
    order = sorted(range(len(prompts)), key=lambda index: list(prompts[index]))
    common = [_common(prompts[one], prompts[two]) for one, two in pairwise(order)]
    saved = [0]  # by the best division of the first prompts of the order
    cut: list[tuple[int, int]] = [(0, 0)]  # where its last set starts, and the length of that set's prefix
    for end in range(1, len(order) + 1):
        prefix = longest = len(prompts[order[end - 1]])
        prefix -= 1
        saved.append(saved[end - 1])
        cut.append((end - 1, prefix))
        for start in range(end - 2, -1, -1):
            length = len(prompts[order[start]])
            prefix = min(prefix, common[start], length - 1)
            longest = max(longest, length)
            if 2 * prefix < longest:
                break
            if saved[start] + (end - start - 1) * prefix > saved[end]:
                saved[end] = saved[start] + (end - start - 1) * prefix
                cut[end] = (start, prefix)
    sets, end = [], len(order)
    while end:
        start, prefix = cut[end]
        sets.append((order[start:end], prefix))
        end = start
    return sets[::-1]


def _common(one: Sequence[int], two: Sequence[int]) -> int:
    pairs = enumerate(zip(one, two, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(two)))


def encode_by_prefix(
    model: nn.Module, groups: PromptGroups, cache: DynamicCache
) -> tuple[Tensor, Tensor] | None:
    """Fill `cache` with the D distinct prompts, one row each, encoding what they have in common once.

    A row holds the prefix, padded on the left, then the rest of its prompt, padded on the right. Returns the
    state after each prompt's last token, [D, H], and which columns of its row hold a prompt, bool [D, K].
    Returns None, and leaves the cache as it is, where padding outweighs what would be saved, or where a
    prompt is a single token, which leaves no prefix.

    Prompts get a row each, rather than one for a set: side by side, they would spend attention on each
    other's masked keys, and slots of the row would idle as soon as answers end.
    """
    prompts = [ids[mask].tolist() for ids, mask in zip(groups.ids, groups.mask, strict=True)]
    sets = prefix_sets(prompts)
    set_of = {index: number for number, (members, _) in enumerate(sets) for index in members}
    rows = [set_of[index] for index in range(len(prompts))]
    rests = [prompt[sets[row][1] :] for prompt, row in zip(prompts, rows, strict=True)]
    wide, long = max(prefix for _, prefix in sets), max(map(len, rests))
    if min(prefix for _, prefix in sets) < 1 or len(sets) * wide + len(rests) * long >= groups.ids.numel():
        return None

    device = groups.ids.device
    heads = [prompts[members[0]][:prefix] for members, prefix in sets]
    prefixes = PromptGroups(
        torch.tensor([[0] * (wide - len(ids)) + ids for ids in heads], device=device),
        torch.tensor([[False] * (wide - len(ids)) + [True] * len(ids) for ids in heads], device=device),
        trimmed=0,
        group=rows,
    )
    encode_prompts(model, prefixes, content_positions(prefixes), cache)
    cache.batch_select_indices(torch.tensor(rows, device=device))

    lengths = torch.tensor([len(ids) for ids in rests], device=device)
    column = torch.arange(long, device=device)
    prefix_seen = prefixes.mask[rows]
    past = prefix_seen[:, None].expand(-1, long, -1)
    causal = torch.ones(long, long, dtype=torch.bool, device=device).tril().expand(len(rests), -1, -1)
    output = model.base_model(
        input_ids=torch.tensor([ids + [0] * (long - len(ids)) for ids in rests], device=device),
        attention_mask=attention_mask(torch.cat([past, causal], dim=2), model),
        # Padding on the right, which nothing sees, repeats the last position: GPT-2 has no further ones.
        position_ids=prefix_seen.sum(1, keepdim=True) + torch.minimum(column, lengths[:, None] - 1),
        past_key_values=cache,
        use_cache=True,
    )
    states = output.last_hidden_state[torch.arange(len(rests), device=device), lengths - 1]
    return states, torch.cat([prefix_seen, column < lengths[:, None]], dim=1)
