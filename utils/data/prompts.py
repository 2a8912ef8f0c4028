"""The one rendering of prompts and completions, shared by SFT, RL, scoring and evaluation.

The prompt ends where generation starts, the completion ends in the token that ends a turn, and the two are
tokenised apart: ``ids(prompt) + ids(completion)`` is the same sequence in training and in sampling.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.frame.files import UserError

if TYPE_CHECKING:
    from utils.data.records import Record

# A chat template is a program that comes with a model. What it may use for one rendering: seconds of this
# process's time, and characters beyond those that it is given. Real ones take milliseconds.
SECONDS, CHARACTERS = 5, 1_000_000
# Chat templates may ask for today's date, and a run must not change overnight. Llama 3's own default.
DATE = "2024-07-26"


@dataclass(frozen=True)
class PromptFormat:
    """What a chat template is given besides the question.

    Attributes:
        system_prompt: the system turn; "" leaves it to the template.
        kwargs: the template's own arguments, such as Qwen 3's ``enable_thinking``.
        date: the day that a template is told when it asks (ISO 8601).
    """

    system_prompt: str = ""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    date: str = DATE


def set_prompt_format(tokenizer: Any, prompt_format: PromptFormat) -> None:
    """Let ``tokenizer`` render prompts in this format from now on.

    Raises ValueError, with the template's own words, where its template cannot render a plain question.
    """
    tokenizer.prompt_format = prompt_format
    tokenizer.end_of_turn_id = None
    if not getattr(tokenizer, "chat_template", None):
        return
    try:
        rendered = render_prompt(tokenizer, "1 + 1?")
    except UserError as error:
        raise ValueError(str(error)) from None
    except Exception as error:  # a template is a program: it may raise anything
        raise ValueError(f"its chat template refuses a plain question ({_first_line(error)})") from None
    if "1 + 1?" not in rendered:
        raise ValueError("its chat template leaves the question out")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def render_prompt(tokenizer: Any, input_text: str) -> str:
    """The text a model is prompted with: one user turn of the chat template, or the bare text without one.

    A tokenizer that opens sequences with a beginning-of-sequence token, as Llama's does, gets it here too.
    The result contains every special token that is wanted; tokenise it with `token_ids`.
    """
    if not getattr(tokenizer, "chat_template", None):
        return _opening(tokenizer) + input_text
    return _render(tokenizer, [{"role": "user", "content": input_text}], add_generation_prompt=True)


def _opening(tokenizer: Any) -> str:
    """The beginning-of-sequence token as text where the tokenizer opens sequences with one, else ""."""
    with_special = tokenizer("0")["input_ids"]
    plain = tokenizer("0", add_special_tokens=False)["input_ids"]
    opens = with_special[:1] == [tokenizer.bos_token_id] and with_special[1 : 1 + len(plain)] == plain
    return tokenizer.bos_token if opens else ""


def _render(tokenizer: Any, turns: list[dict[str, str]], add_generation_prompt: bool) -> str:
    prompt_format = getattr(tokenizer, "prompt_format", PromptFormat())
    if prompt_format.system_prompt:
        turns = [{"role": "system", "content": prompt_format.system_prompt}, *turns]
    with _on_day(prompt_format.date), _in_time():
        rendered = tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=add_generation_prompt, **prompt_format.kwargs
        )
    if len(rendered) > CHARACTERS + sum(len(turn["content"]) for turn in turns):
        raise UserError(f"the model's chat template writes {len(rendered)} characters around a prompt")
    return rendered


@contextlib.contextmanager
def _in_time() -> Iterator[None]:
    """Let a rendering that does not end in `SECONDS` of processor time be a UserError.

    Outside of the main thread, where Python takes no signals, there is no such limit.
    """

    def stop(number: int, frame: Any) -> None:
        raise UserError(
            f"the model's chat template has not ended after {SECONDS} seconds: give another model"
        )

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@contextlib.contextmanager
def _on_day(date: str) -> Iterator[None]:
    """Let the template function ``strftime_now`` tell this day: Transformers takes plain values only as
    arguments of a template, so its clock is replaced for the time of a rendering.
    """
    from transformers.utils import chat_template_utils

    day = datetime.datetime.fromisoformat(date)
    clock, chat_template_utils.datetime = chat_template_utils.datetime, SimpleNamespace(now=lambda: day)
    try:
        yield
    finally:
        chat_template_utils.datetime = clock


def end_of_turn(tokenizer: Any) -> int:
    """The token that ends an assistant's turn, by the chat template: what SFT teaches and sampling stops at.

    It is the first special token that the template writes after an assistant's words. Without a template, or
    where that writes none, it is the end-of-sequence token.

    Raises ValueError for a tokenizer with neither: nothing would teach it to stop.
    """
    known = getattr(tokenizer, "end_of_turn_id", None)
    if known is None:
        known = _end_of_turn_of_template(tokenizer)
        if known is None:
            known = tokenizer.eos_token_id
        if known is None:
            raise ValueError("the tokenizer has no end-of-sequence token (eos_token); set one")
        tokenizer.end_of_turn_id = known
    return known


def _end_of_turn_of_template(tokenizer: Any) -> int | None:
    if not getattr(tokenizer, "chat_template", None):
        return None
    words = "forty-two"
    turns = [{"role": "user", "content": "6 x 7?"}, {"role": "assistant", "content": words}]
    try:
        rendered = _render(tokenizer, turns, add_generation_prompt=False)
    except UserError:
        raise
    except Exception:  # a template for questions alone
        return None
    tail = tokenizer(rendered.rpartition(words)[2], add_special_tokens=False)["input_ids"]
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    return next((token for token in tail if token in special), None)


def template_facts(tokenizer: Any) -> dict[str, dict[str, str]]:
    """The chat template's hash and the token that ends a turn, for manifests, which have no other trace of a
    hub model's template; {} without one.
    """
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        return {}
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)  # several, by name
    ends = tokenizer.convert_ids_to_tokens(end_of_turn(tokenizer))
    return {"chat_template": {"sha256": hashlib.sha256(text.encode()).hexdigest(), "end_of_turn": ends}}


def completion_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The token ids that a model is taught to write for each text: the text, then the end of the turn."""
    end = end_of_turn(tokenizer)
    return [[*ids, end] for ids in token_ids(tokenizer, texts)]


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
