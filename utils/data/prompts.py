"""The one rendering of prompts and completions, shared by SFT, RL, scoring and evaluation.

The prompt ends where generation starts, the completion ends in the end-of-sequence token, and the two are
tokenised apart: ``ids(prompt) + ids(completion)`` is the same sequence in training and in sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from utils.data.records import Record


def render_prompt(tokenizer: Any, input_text: str) -> str:
    """The text a model is prompted with: one user turn of the chat template, or the bare text without one.

    A tokenizer that opens sequences with a beginning-of-sequence token, as Llama's does, gets it here too.
    The result contains every special token that is wanted; tokenise it with `token_ids`.
    """
    if not getattr(tokenizer, "chat_template", None):
        opening = tokenizer("")["input_ids"][:1]
        opens = bool(opening) and opening[0] == tokenizer.bos_token_id
        return (tokenizer.bos_token if opens else "") + input_text
    messages = [{"role": "user", "content": input_text}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def render_completion(tokenizer: Any, target_text: str) -> str:
    """The text a model is taught to write: the target followed by the end-of-sequence token.

    Raises ValueError for a tokenizer without an end-of-sequence token: nothing would teach it to stop.
    """
    if not tokenizer.eos_token:
        raise ValueError("the tokenizer has no end-of-sequence token (eos_token); set one")
    return target_text + tokenizer.eos_token


def token_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The token ids of rendered texts, without special tokens beyond those that stand in them."""
    return tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []


def prompt_ids(tokenizer: Any, records: Sequence[Record]) -> list[list[int]]:
    """The token ids of the records' rendered prompts."""
    return token_ids(tokenizer, [render_prompt(tokenizer, record.input_text) for record in records])


class PromptTokens:
    """`token_ids` of prompts that come again and again: each is tokenised once."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self._known: dict[str, np.ndarray] = {}  # a list would take nine times the memory

    def __call__(self, prompts: Sequence[str]) -> list[list[int]]:
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]
        for prompt, ids in zip(new, token_ids(self.tokenizer, new), strict=True):
            self._known[prompt] = np.array(ids, dtype=np.int32)
        return [self._known[prompt].tolist() for prompt in prompts]
