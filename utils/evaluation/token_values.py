"""What policy, teacher and reference say of response tokens, given the same prefixes: one pass of each.

The logits row at position p - 1 says what a model predicts for the token at p. Prompt and padding tokens
contribute nothing. What prompts begin with is encoded once for all texts that follow it
(``utils.models.prefix.shared_prefix``), and logits exist for a few tokens at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from utils.evaluation.distances import WITHOUT, TokenPrediction, distances
from utils.frame.files import UserError
from utils.frame.processes import merge_shares, share
from utils.models.prefix.common_prefix import batches_by_prefix, prefix_sets
from utils.models.prefix.prefix_scoring import LOGIT_BYTES, padded_parts, states_and_head
from utils.models.prefix.shared_prefix import CompletionBatch, obstacle, position_limit
from utils.models.value_head import ValueHead, ValueModel

SLICE_TOKENS = 2**14  # prompt and response tokens run at once, padding counted

# Name -> a value per token, float64; see `token_values` for the names.
Values = dict[str, np.ndarray]


@dataclass(frozen=True)
class Models:
    """The policy, and who it is held against by name: "teacher", "reference", both or one.

    vocab_size   len(tokenizer), which all share; columns beyond it are padding of the vocabulary
    alpha        temperature of the teacher's soft values
    temperature  of sampling, at which PPO takes log-probabilities
    critic       PPO's, which judges the states before the tokens
    """

    policy: nn.Module
    others: Mapping[str, nn.Module]
    vocab_size: int
    alpha: float = 1.0
    temperature: float = 1.0
    critic: ValueHead | ValueModel | None = None

    def all(self) -> dict[str, nn.Module]:
        return {"policy": self.policy, **self.others}


@torch.no_grad()
def token_values(models: Models, batch: CompletionBatch, wanted: Tensor | None = None) -> Values:
    """Values of the N unmasked response tokens of ``batch``, row after row, in nats where not said otherwise.

    ``wanted``, a bool for each of these tokens, leaves the others out.

        distances/<other>    [N, 6], in the order of ``teacher_metrics.NAMES``
        log_prob/<model>     [N], of the token, for the policy and each other
        sampled/<model>      [N], the same at ``models.temperature``
        q, v                 [N], the teacher's logit f(a) of the token and alpha * logsumexp(f / alpha)
        value                [N], the critic's value of the state before the token

    q and v are there with a teacher, value with a critic. float32 arithmetic (float64 for float64 models).
    A model that is the policy itself is not run again.
    """
    kept = slice(None) if wanted is None else wanted
    states = {"policy": states_and_head(models.policy, batch)}
    for name, model in models.others.items():
        states[name] = states["policy"] if model is models.policy else states_and_head(model, batch)
    states = {name: (before[kept], head) for name, (before, head) in states.items()}
    rows, tokens = max(1, LOGIT_BYTES // (4 * models.vocab_size)), batch.tokens()[kept]
    pieces = []
    for start in range(0, max(1, len(tokens)), rows):
        part = slice(start, start + rows)
        logits = {name: head(before[part]) for name, (before, head) in states.items()}
        pieces.append(_piece_values(models, logits, tokens[part]))
    values = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
    if isinstance(models.critic, ValueModel):
        values["value"] = models.critic(batch, shared=obstacle(models.critic.model) is None)[kept]
    elif models.critic is not None:
        values["value"] = models.critic(states["policy"][0])
    return {name: column.double().cpu().numpy() for name, column in values.items()}


def _piece_values(models: Models, logits: Mapping[str, Tensor], tokens: Tensor) -> dict[str, Tensor]:
    """The values of a few tokens from the logits of every model, [n, V] each."""
    logits = {name: f[:, : models.vocab_size] for name, f in logits.items()}
    predictions = {name: TokenPrediction.of(f) for name, f in logits.items()}
    found = {
        f"distances/{name}": distances(predictions["policy"], predictions[name]) for name in models.others
    }
    for name, f in logits.items():
        f = f.to(torch.promote_types(f.dtype, torch.float32))
        chosen = f.gather(-1, tokens[:, None]).squeeze(-1)
        found[f"log_prob/{name}"] = chosen - f.logsumexp(-1)
        if models.temperature != 1.0:
            t = models.temperature
            found[f"sampled/{name}"] = chosen / t - (f / t).logsumexp(-1)
        else:
            found[f"sampled/{name}"] = found[f"log_prob/{name}"]
        if name == "teacher":
            found |= {"q": chosen, "v": models.alpha * (f / models.alpha).logsumexp(-1)}
    return found


def values_of_texts(
    models: Models,
    prompts: Sequence[Sequence[int]],
    texts: Mapping[str, Sequence[Sequence[int] | None]],
    progress: Callable[[list], Any] = iter,
) -> dict[str, dict[int, Values]]:
    """The values of one or more texts per item: name of the text -> item -> its values, as run.

    Every process calls this alike, they share the passes, and each gets all the values.

    Args:
        prompts: token ids of each item's prompt.
        texts: name -> the token ids that follow each prompt, None where an item has no such text.

    Not there are items without the text, those longer than the positions of any of the models, and those with
    tokens beyond the tokenizer. Raises UserError where a model's values are not finite.
    """
    limit = min(map(position_limit, models.all().values()))
    # A text that occurs under several names (an answer that is the gold text) is run once.
    rows: dict[tuple[int, tuple[int, ...]], list[str]] = {}
    for name, of_items in texts.items():
        for item, text in enumerate(of_items):
            fits = text is not None and len(prompts[item]) + len(text) <= limit
            if fits and max([*prompts[item], *text], default=0) < models.vocab_size:
                rows.setdefault((item, tuple(text)), []).append(name)
    # Prompts that begin alike run together, sets of similar length, the texts of one prompt side by side.
    items = sorted({item for item, _ in rows})
    batches = batches_by_prefix([prompts[item] for item in items], max(1, len(items)))
    by_prefix = (index for batch in batches for index in batch)
    place = {items[index]: number for number, index in enumerate(by_prefix)}
    order = sorted(rows, key=lambda row: place[row[0]])
    lengths = [len(prompts[item]) + len(text) for item, text in order]
    slices = [order[part] for part in padded_parts(lengths, SLICE_TOKENS)]
    passes = merge_shares([_values_of_slice(models, prompts, part) for part in progress(share(slices))])
    found: dict[str, dict[int, Values]] = {name: {} for name in texts}
    for part, values in zip(slices, passes, strict=True):
        for (item, text), row in zip(part, values, strict=True):
            for name in rows[item, text]:
                found[name][item] = row
    return found


def _values_of_slice(
    models: Models, prompts: Sequence[Sequence[int]], part: Sequence[tuple[int, tuple[int, ...]]]
) -> list[Values]:
    """The values of texts that run together, given as pairs of item and text."""
    device = next(models.policy.parameters()).device
    items = list(dict.fromkeys(item for item, _ in part))
    # A text follows the rest of its prompt, after what that shares with others: one token at least.
    shared = {}
    for members, length in prefix_sets([prompts[item] for item in items]):
        shared |= {items[member]: max(1, length) for member in members}
    rests = [prompts[item][shared[item] :] for item, _ in part]
    batch = CompletionBatch.of(
        [prompts[item][: shared[item]] for item, _ in part],
        [[*rest, *text] for rest, (_, text) in zip(rests, part, strict=True)],
        device,
    )
    wanted = [
        is_text
        for rest, (_, text) in zip(rests, part, strict=True)
        for is_text in [False] * len(rest) + [True] * len(text)
    ]
    values = token_values(models, batch, torch.tensor(wanted, dtype=torch.bool, device=device))
    ends = np.cumsum([len(text) for _, text in part])
    found = []
    for (item, text), last in zip(part, ends.tolist(), strict=True):
        found.append({name: column[last - len(text) : last] for name, column in values.items()})
        _check_finite(found[-1], item)
    return found


def _check_finite(row: Values, item: int) -> None:
    broken = [name for name, column in row.items() if not np.isfinite(column).all()]
    if broken:
        raise UserError(
            f"the policy or what it is held against gave values that are not finite for item {item} "
            f"({', '.join(broken)}): check the weights, or set model.torch_dtype: float32; {WITHOUT}"
        )
