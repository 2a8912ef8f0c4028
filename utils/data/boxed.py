r"""The answer in a MATH solution: the content of its last ``\boxed``."""

import re

_TOKENS = re.compile(r"\\(?:boxed|fbox)\s*\{|\\(?:boxed|fbox)\s+[^\s${}\\]+|\\.|\{|\}", re.DOTALL)


def last_boxed(text: str) -> str | None:
    r"""The content of the last brace-balanced ``\boxed{...}`` (or ``\fbox``, or ``\boxed 2``), stripped.

    Of nested boxes the inner one; an unclosed box is none; escaped braces do not count. One pass, linear
    in the length of the text.
    """
    open_braces: list[int | None] = []  # for each open brace, where its box's content starts
    best: tuple[int, int] | None = None
    for match in _TOKENS.finditer(text):
        token = match[0]
        if token == "}":
            start = open_braces.pop() if open_braces else None
            if start is not None and (best is None or start > best[0]):
                best = (start, match.start())
        elif token.endswith("{") and token != r"\{":
            open_braces.append(match.end() if token != "{" else None)
        elif token.startswith((r"\boxed", r"\fbox")):
            content = re.search(r"\s+", token).end() + match.start()
            if best is None or content > best[0]:
                best = (content, match.end())
    return text[best[0] : best[1]].strip() if best else None
