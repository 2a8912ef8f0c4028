"""The one rendering of prompts and completions, shared by SFT, RL, scoring and evaluation.

The prompt ends where generation starts, the completion ends in the end-of-sequence token, and the two are
tokenised apart: ``ids(prompt) + ids(completion)`` is the same sequence in training and in sampling.
"""

from typing import Any


def render_prompt(tokenizer: Any, input_text: str) -> str:
    """The text a model is prompted with: one user turn of the chat template, or the bare text without one.

    A tokenizer that opens sequences with a beginning-of-sequence token, as Llama's does, gets it here too.
    The result contains every special token that is wanted; tokenise it with ``add_special_tokens=False``.
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
