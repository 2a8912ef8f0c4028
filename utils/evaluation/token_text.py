"""The text of each token of an answer; joined they are the answer, special tokens shown by their names."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

UNFINISHED = "\ufffd"  # what a tokenizer decodes half a character to
LONGEST = 4  # bytes of a character in UTF-8, and so tokens, where each is a byte


class TokenTexts:
    """The pieces of text that a tokenizer's tokens stand for. What was decoded is remembered."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer, self._special = tokenizer, set(tokenizer.all_special_ids)
        self._known: dict[tuple[int | None, tuple[int, ...]], str] = {}

    def of(self, ids: Sequence[int]) -> list[str]:
        """A piece for every token.

        A character that several tokens make together stands at the last of them, "" at the others. Bytes that
        make no character are shown as U+FFFD.
        """
        pieces: list[str] = []
        pending: list[int] = []
        before: int | None = None  # the token before the pending ones: some tokenizers drop a leading space
        for token in ids:
            if token in self._special:
                pieces += self._alone(before, pending)
                pieces.append(self._tokenizer.convert_ids_to_tokens(token))
                pending, before = [], None
                continue
            pending.append(token)
            while pending:
                text = self._piece(before, tuple(pending))
                if UNFINISHED not in text:
                    pieces += [""] * (len(pending) - 1) + [text]
                    pending, before = [], token
                elif text.endswith(UNFINISHED) and len(pending) < LONGEST:
                    break  # the next token may complete it
                else:
                    pieces += self._alone(before, pending[:1])
                    before, pending = pending[0], pending[1:]
        return pieces + self._alone(before, pending)

    def _alone(self, before: int | None, tokens: Sequence[int]) -> list[str]:
        """The pieces of tokens that make no character together."""
        return [self._piece(before, (token,)) for token in tokens]

    def _piece(self, before: int | None, tokens: tuple[int, ...]) -> str:
        key = (before, tokens)
        if key not in self._known:
            head = [] if before is None else [before]
            start = self._decode(head) if head else ""
            text = self._decode([*head, *tokens])
            self._known[key] = text.removeprefix(start) if text.startswith(start) else self._decode(tokens)
        return self._known[key]

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(
            list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
