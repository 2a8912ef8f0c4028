r"""The answer in a MATH solution: the content of its last ``\boxed``, or of several."""

import re
from collections.abc import Iterator

# Without braces: a number (\boxed5), or after a blank anything but a word: "in \boxed as asked" has none.
_BARE = r"[0-9][^\s${}\\]*|\s+(?![A-Za-z]{2})[^\s${}\\]*[A-Za-z0-9][^\s${}\\]*"
_TOKENS = re.compile(rf"\\(?:boxed|fbox)\s*\{{|\\(?:boxed|fbox)(?P<bare>{_BARE})|\\.|\{{|\}}", re.DOTALL)


def last_boxed(text: str) -> str | None:
    r"""The content of the last brace-balanced ``\boxed{...}`` (or ``\fbox``, or ``\boxed 2``), stripped.

    Of nested boxes the inner one; an unclosed box is none; escaped braces do not count; an empty box counts
    only where all are empty ("I put it in \boxed{}"). One pass, linear in the length of the text.
    """
    best: tuple[bool, int, int] | None = None  # whether it has content, where it starts and ends
    for start, end, _ in _boxes(text):
        best = max(best or (False, -1, -1), (bool(text[start:end].strip()), start, end))
    return text[best[1] : best[2]].strip() if best else None


def all_boxed(text: str) -> list[str]:
    """The different contents of all boxes with content that stand in no other box, in order."""
    found = (text[start:end].strip() for start, end, depth in _boxes(text) if depth == 0)
    return list(dict.fromkeys(filter(None, found)))


def boxed_list(text: str) -> str:
    """The answer of a solution that boxes the parts of its answer one by one, as a list: "-2, 1"."""
    return ", ".join(all_boxed(text))


def _boxes(text: str) -> Iterator[tuple[int, int, int]]:
    """Where the content of each box starts and ends, and in how many boxes it stands, as they end."""
    open_braces: list[int | None] = []  # for each open brace, where its box's content starts
    around = 0  # of these, how many are of boxes
    for match in _TOKENS.finditer(text):
        token = match[0]
        start, end = None, match.start()
        if token == "}":
            start = open_braces.pop() if open_braces else None
            around -= start is not None
        elif token[-1] == "{" and token != r"\{":
            open_braces.append(match.end() if token != "{" else None)
            around += token != "{"
        elif match["bare"]:
            start, end = match.span("bare")
        if start is not None:
            yield start, end, around
