"""Damaged and hostile inputs, made at random from whole ones."""

import json
import random
from typing import Any

# Values that readers have been found to stumble over.
ODD = [
    *(None, True, -1, 0, 1.5, 10**30, 10**400, float("nan"), float("inf"), -0.0),
    *("", "\0", "\ud800", "x" * 5000, "../../etc/passwd", "2024-13-45", "1e999", "٣", "=1+1", "{{ x }}"),
    *([], {}, [[]], {"": {}}, [None], {"a": 10**400}),
]
DEEP = {depth: json.loads("[" * depth + "]" * depth) for depth in (60, 400)}
# Pieces that mean something to JSON, YAML, LaTeX, programs or a command line.
PIECES = [
    *rb"""{ } [ ] " \ , : | ? ~ ... --- <<: &a *a !!set 1e9999 NaN -Infinity "\ud800" """.split(),
    *rb"2024-13-45 \frac{1}{ \boxed{ \sqrt[ \left( \text{ 9**9**9 10^{10^{10}} #### << >> #0 const_".split(),
    *(b"\n", b"\r", b"\t", b"\0", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xe2\x80\xae", b"\n---\n"),
    *(b"[" * 2000, b'{"a":' * 400, b"9" * 5000, b"0x" + b"f" * 400, b"1:" * 200, b"^" * 50, b"!" * 30),
    *(b"!!int zz", b"!!python/object:os.system", b"!!timestamp x", b"<<: *a", b"- - - ", b"%YAML 9"),
    *(b"subtract(", b"divide(1, 0)", b"exp(9999999, 9999999)", b"#### 1e999", b"!!binary ="),
]
LAUGHS = "a0: &a0 [x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)
)


def damaged(whole: bytes, rng: random.Random) -> bytes:
    """A text after one to four accidents: bits flipped, spans lost, doubled or moved, pieces put in."""
    text = bytearray(whole)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        start = rng.randrange(len(text) + 1)
        end = min(len(text), start + rng.choice((1, 1, 2, 8, 60)))
        accident = rng.randrange(6)
        if accident == 0 and start < len(text):
            text[start] ^= 1 << rng.randrange(8)
        elif accident == 1:
            del text[start:end]
        elif accident == 2:
            text[start:start] = text[start:end] * rng.choice((1, 2, 50))
        elif accident == 3:
            del text[start:]
        else:
            text[start : end if accident == 4 else start] = rng.choice(PIECES)
    return bytes(text)


def changed(value: Any, rng: random.Random) -> Any:
    """A JSON value with something odd in the place of one of its parts, or a part lost or added."""
    if not isinstance(value, (dict, list)) or not value or rng.random() < 0.15:
        return rng.choice([*ODD, *DEEP.values()])
    if isinstance(value, list):
        place = rng.randrange(len(value))
        return [*value[:place], changed(value[place], rng), *value[place + 1 :]]
    key = rng.choice(list(value))
    accident = rng.random()
    if accident < 0.1:
        return {name: each for name, each in value.items() if name != key}
    if accident < 0.2:
        return value | {rng.choice([each for each in ODD if isinstance(each, str)]): value[key]}
    return value | {key: changed(value[key], rng)}


def as_json(value: Any) -> bytes:
    """A value as JSON, with whatever JSON in Python has beyond the standard."""
    return json.dumps(value).encode()
