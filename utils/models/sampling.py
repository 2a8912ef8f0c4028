"""Answers of a policy to a list of prompts, in batches of similar length.

Each distinct prompt is encoded once (``prefix/prefix_sampling.py``); a model that cannot share prefixes
answers through Transformers' ``generate``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from utils.data.prompts import end_of_turn
from utils.frame.files import UserError
from utils.frame.processes import gather_items, num_processes, process_index
from utils.models.loading import plain_generation_config
from utils.models.prefix.prefix_sampling import Completions, sample_completions, sampling_noise
from utils.models.prefix.shared_prefix import evaluating, obstacle, position_limit
from utils.models.sampling_memory import Room
from utils.models.settings import GenerationSection


@dataclass(frozen=True)
class Completion:
    """One answer: decoded text without special tokens, token ids with the end-of-sequence token, and whether
    it was cut off before one."""

    text: str
    token_ids: list[int]
    truncated: bool


Completer = Callable[..., list[list[Completion]]]  # `complete` without its model and tokenizer


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    num_samples: int = 1,
    batch_size: int = 64,
    generator: torch.Generator | None = None,
    progress: Callable[[list], object] = iter,
    across_processes: bool = False,
    room: Room | None = None,
    completer: Completer | None = None,
    **drawing: Any,
) -> list[Completion]:
    """``num_samples`` completions per prompt (token ids), those of one prompt next to each other, in the
    prompts' order; ``batch_size`` counts completions.

    ``drawing``: temperature, top_p and top_k, as `complete` has them; greedy without. ``across_processes``:
    every process calls this alike, they share the batches, and each gets all the completions, which are those
    of a single process. ``room`` divides what memory has no room for. ``completer`` does what `complete` else
    does with ``model`` and ``tokenizer``.

    Raises UserError where prompt and completion together exceed the model's positions.
    """
    _check_length(model, prompts, max_new_tokens)
    completer = completer or functools.partial(complete, model, tokenizer, room=room)
    drawing |= {"max_new_tokens": max_new_tokens, "generator": generator}
    answers: dict[int, list[Completion]] = {}
    for turn, batch in enumerate(progress(batches_by_length(prompts, batch_size, num_samples))):
        if across_processes and turn % num_processes() != process_index():
            _pass_over(model, len(batch) * num_samples, **drawing)
            continue
        found = completer([prompts[index] for index in batch], num_samples=num_samples, **drawing)
        answers |= dict(zip(batch, found, strict=True))
    if across_processes:
        answers = dict(gather_items(list(answers.items())))
    return [completion for index in range(len(prompts)) for completion in answers[index]]


def drawn_as(generation: GenerationSection) -> dict[str, Any]:
    """How completions are drawn under the settings, as arguments of `generate` and `complete`."""
    names = ("max_new_tokens", "temperature", "top_p", "top_k")
    return {name: getattr(generation, name) for name in names}


def batches_by_length(
    prompts: Sequence[Sequence[int]], batch_size: int, num_samples: int = 1
) -> list[list[int]]:
    """Indices of prompts (token ids) in batches, shortest first, of ``batch_size`` completions at most (but
    of one prompt at least)."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    size = max(1, batch_size // num_samples)
    return [order[start : start + size] for start in range(0, len(order), size)]


def complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    num_samples: int = 1,
    generator: torch.Generator | None = None,
    common_prefixes: bool = False,
    room: Room | None = None,
) -> list[list[Completion]]:
    """``num_samples`` completions for each prompt (token ids) of one batch, in evaluation mode.

    Ids beyond the tokenizer, which the model may have logits for, are never sampled. ``common_prefixes``
    encodes what several prompts begin with once, where the model can share prefixes.
    ``room`` divides what memory has no room for; a model that cannot share prefixes then draws anew by part.

    Raises FloatingPointError where logits are not finite.
    """
    rows = [list(prompt) for prompt in prompts for _ in range(num_samples)]
    longest = max(map(len, rows))
    device = next(model.parameters()).device
    prompt_ids = torch.tensor(
        [[tokenizer.pad_token_id] * (longest - len(row)) + row for row in rows], device=device
    )
    prompt_mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    draws = {"generator": generator}
    if obstacle(model) is None:
        sampler = functools.partial(sample_completions, common_prefixes=common_prefixes)
        if temperature > 0:
            draws = {"noise": sampling_noise(len(rows), max_new_tokens, generator)}
    else:
        sampler = _generate_with_transformers
    eos = sorted(eos_token_ids(model, tokenizer))

    def sampled(part: slice) -> list[list[int]]:
        return sampler(
            model,
            prompt_ids[part],
            prompt_mask[part],
            max_new_tokens=max_new_tokens,
            eos_token_ids=eos,
            pad_token_id=tokenizer.pad_token_id,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            vocab_size=len(tokenizer),
            **{name: draw[part] if name == "noise" else draw for name, draw in draws.items()},
        ).token_lists()

    with evaluating(model):
        parts = room.run(len(rows), sampled) if room else [sampled(slice(None))]
    found = [as_completion(tokenizer, tokens, eos) for part in parts for tokens in part]
    return [found[start : start + num_samples] for start in range(0, len(found), num_samples)]


def eos_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Every token that ends a completion: the end of a turn, the tokenizer's end of sequence, and those of
    the model's generation config."""
    configured = model.generation_config.eos_token_id
    configured = configured if isinstance(configured, list) else [configured]
    ends = [*configured, tokenizer.eos_token_id, end_of_turn(tokenizer)]
    return {token for token in ends if token is not None}


def padding_ids(model: PreTrainedModel, vocab_size: int | None) -> list[int]:
    """The ids that the model has logits for beyond the ``vocab_size`` tokens of its tokenizer."""
    return [] if vocab_size is None else list(range(vocab_size, model.config.get_text_config().vocab_size))


def as_completion(tokenizer: PreTrainedTokenizerBase, tokens: list[int], eos: list[int]) -> Completion:
    """The answer that token ids are, of which those in ``eos`` end one."""
    ended = bool(tokens) and tokens[-1] in eos
    return Completion(tokenizer.decode(tokens, skip_special_tokens=True), tokens, truncated=not ended)


def _check_length(model: PreTrainedModel, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    limit = position_limit(model)
    longest = max(map(len, prompts), default=0)
    if longest + max_new_tokens > limit:
        raise UserError(
            f"a prompt of {longest} tokens and max_new_tokens {max_new_tokens} exceed the model's {limit} "
            "positions; lower dataset.max_input_tokens or generation.max_new_tokens"
        )


def _pass_over(
    model: PreTrainedModel,
    completions: int,
    max_new_tokens: int,
    generator: torch.Generator | None,
    temperature: float = 0.0,
    **_: Any,
) -> None:
    """Leave ``generator`` as it is after a batch that another process completes."""
    if generator is None:
        return
    if obstacle(model) is not None:
        _seed_from(generator)
    elif temperature > 0:
        sampling_noise(completions, max_new_tokens, generator)


def _seed_from(generator: torch.Generator) -> int:
    return int(torch.randint(2**31, (), generator=generator))


def _generate_with_transformers(
    model, prompt_ids, prompt_mask, *, eos_token_ids, temperature, top_p, top_k, generator, vocab_size, **rest
) -> Completions:
    """The same contract through ``generate``, which draws from a global state seeded by ``generator``."""
    sampling = {"temperature": temperature, "top_p": top_p, "top_k": top_k} if temperature > 0 else {}
    if padding := padding_ids(model, vocab_size):
        sampling["suppress_tokens"] = padding
    with torch.random.fork_rng():
        if generator is not None:
            torch.manual_seed(_seed_from(generator))
        shipped, model.generation_config = model.generation_config, plain_generation_config(model)
        output = model.generate(
            input_ids=prompt_ids,
            attention_mask=prompt_mask,
            do_sample=temperature > 0,
            eos_token_id=eos_token_ids,
            **rest,
            **sampling,
        )
        model.generation_config = shipped
    ids = output[:, prompt_ids.shape[1] :]
    ended = torch.isin(ids, torch.tensor(eos_token_ids, device=ids.device)).long()
    mask = (ended.cumsum(1) - ended == 0).long()
    return Completions(ids, mask, None)
