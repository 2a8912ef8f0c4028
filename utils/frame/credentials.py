"""Access tokens and keys: where they come from, and how they are kept out of everything that is written.

They come from the environment, from the file ``.env`` in the repository (``BELLMAN_ENV`` names another), and
from the files where the hub and W&B keep a login. They are no configuration keys and no options, so that no
command line, manifest or checkpoint has a place for them. Whatever is written or said goes through `redact`
as well. See docs/tokens.md.
"""

import functools
import json
import os
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

from dotenv import dotenv_values

from utils.frame.files import REPO_ROOT, UserError, shown

REDACTED = "[redacted]"
# Shorter values are settings rather than secrets, and replacing them would garble unrelated text.
SHORTEST = 12
_HEAD = 12  # so many characters of a token at least twice as long are as good as the whole
_NAME = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|KEY)$")
# What is a secret by its form, wherever it comes from: the hub's tokens, and a password within an address.
_FORMS = (
    re.compile(r"\bhf_[A-Za-z0-9]{30,}"),
    re.compile(r"(?<=://)[^/\s:@\"']*:[^/\s@\"']+(?=@)"),
)


def load_environment() -> None:
    """Add the settings of ``.env`` to the environment, which wins, and let the hub find its token.

    The hub's library reads HF_TOKEN, HUGGING_FACE_HUB_TOKEN, the file HF_TOKEN_PATH and the file of
    `hf auth login`, in this order; the file ~/.huggingface_token takes the place of the last where it exists.
    To be called before that library is imported. Raises UserError for an ``.env`` that is not text.
    """
    for name, value in _env_file().items():
        os.environ.setdefault(name, value)
    own = Path.home() / ".huggingface_token"
    if own.is_file():
        # The path and not the token: an environment is inherited by every process that is started.
        os.environ.setdefault("HF_TOKEN_PATH", str(own))


def redact(text: str) -> str:
    """Replace every known secret, as it is or as JSON or an address writes it, by "[redacted]"."""
    known = sorted(_known(), key=len, reverse=True)
    for secret in known:
        text = text.replace(secret, REDACTED)
    for secret in known:  # a message may have been cut within a token (a path's beginning is no secret)
        if len(secret) >= 2 * _HEAD and not re.search(r"[\s/]", secret):
            text = re.sub(re.escape(secret[:_HEAD]) + r"[^\s\"']*", REDACTED, text)
    for form in _FORMS:
        text = form.sub(REDACTED, text)
    return text


def redact_tracebacks() -> None:
    """Let what Python says of an error that nothing caught go through `redact`, too."""

    def say(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        sys.stderr.write(redact("".join(traceback.format_exception(kind, error, trace))))

    sys.excepthook = say


def _known() -> set[str]:
    """All secrets at hand in all their spellings; a text of several lines counts line by line."""
    found = set()
    for value in _values():
        for line in value.splitlines():
            if len(line.strip()) >= SHORTEST:
                plain = line.strip()
                if plain in _own_words():
                    continue
                found |= {plain, quote(plain, safe=""), quote(plain)}
                found |= {json.dumps(plain, ensure_ascii=ascii)[1:-1] for ascii in (False, True)}
    return found


@functools.cache
def _own_words() -> str:
    """What this project spells out itself: a value that stands there (``APP_SECRET=01_preprocessing``) is no
    secret, and replacing it would garble paths and keys."""
    names = [path for path in REPO_ROOT.glob("*.py")]
    names += [path for folder in ("utils", "configs") for path in sorted((REPO_ROOT / folder).rglob("*.*"))]
    readable = [path for path in names if path.suffix in (".py", ".yaml")]
    return "\n".join([*(path.name for path in names), *map(_text, readable)])


def _values() -> Iterator[str]:
    """The values that are secrets by their name or their place."""
    try:
        settings = [*os.environ.items(), *_env_file().items()]
    except UserError:  # said where it is loaded; here it must not hide what is to be said
        settings = list(os.environ.items())
    yield from (value for name, value in settings if _NAME.search(name.upper()))
    home = Path.home()
    hub = Path(os.environ.get("HF_HOME") or home / ".cache" / "huggingface").expanduser()
    given = os.environ.get("HF_TOKEN_PATH")
    files = [home / ".huggingface_token", hub / "token", *([Path(given).expanduser()] if given else [])]
    for path in files:
        yield _text(path)
    for line in _text(hub / "stored_tokens").splitlines():
        yield line.partition("=")[2]
    # Not by Python's netrc, which refuses a whole file for its permissions or for one odd line.
    logins = _text(Path(os.environ.get("NETRC") or home / ".netrc").expanduser())
    yield from (word.strip('"') for word in re.findall(r"\bpassword\s+(\S+)", logins))


def _env_file() -> dict[str, str]:
    """The settings in ``.env``; {} where there is none. Raises UserError where it cannot be read."""
    path = Path(os.environ.get("BELLMAN_ENV") or REPO_ROOT / ".env").expanduser()
    if not path.is_file():
        if os.environ.get("BELLMAN_ENV"):
            raise UserError(f"BELLMAN_ENV: {shown(path)}: no such file")
        return {}
    try:
        found = dotenv_values(path, interpolate=False)
    except (OSError, UnicodeDecodeError) as error:
        # The error's own text could hold what the file holds.
        raise UserError(f"{shown(path)}: cannot be read as UTF-8 text ({type(error).__name__})") from None
    return {name: value for name, value in found.items() if value is not None}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
