r"""The answer in a MATH solution: the content of its last ``\boxed``."""

import re

# Without braces: a number (\boxed5), or after a blank anything but a word: "in \boxed as asked" has none.
_BARE = r"[0-9][^\s${}\\]*|\s+(?![A-Za-z]{2})[^\s${}\\]*[A-Za-z0-9][^\s${}\\]*"
_TOKENS = re.compile(rf"\\(?:boxed|fbox)\s*\{{|\\(?:boxed|fbox)(?P<bare>{_BARE})|\\.|\{{|\}}", re.DOTALL)


def last_boxed(text: str) -> str | None:
    r"""The content of the last brace-balanced ``\boxed{...}`` (or ``\fbox``, or ``\boxed 2``), stripped.

    Of nested boxes the inner one; an unclosed box is none; escaped braces do not count; an empty box counts
    only where all are empty ("I put it in \boxed{}"). One pass, linear in the length of the text.
    """
    open_braces: list[int | None] = []  # for each open brace, where its box's content starts
    best: tuple[bool, int, int] | None = None  # whether it has content, where it starts and ends
    for match in _TOKENS.finditer(text):
        token = match[0]
        start, end = None, match.start()
        if token == "}":
            start = open_braces.pop() if open_braces else None
        elif token[-1] == "{" and token != r"\{":
            open_braces.append(match.end() if token != "{" else None)
        elif match["bare"]:
            start, end = match.span("bare")
        if start is not None:
            best = max(best or (False, -1, -1), (bool(text[start:end].strip()), start, end))
    return text[best[1] : best[2]].strip() if best else None
