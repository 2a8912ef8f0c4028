"""A machine that has run out of disk or memory, or does not allow what is asked: told from the errors of
Python, torch and safetensors, which say so each in its own way.
"""

import errno
import os
import re
import resource
from collections.abc import Iterator

from utils.frame.files import first_line, shown

_SPACE = "free space or choose another --outputs_root"
_SIZE = "raise the limit on file sizes (ulimit -f)"
_MEMORY = "free memory, raise the limit on it (ulimit -v), or give a smaller model"
_ALLOW = "mend its permissions or choose another --outputs_root"
_OTHER = "choose another --outputs_root or --run_id"
_SHORTAGES = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EFBIG: _SIZE,
    errno.ENOMEM: _MEMORY,
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
}
_REMEDIES = _SHORTAGES | {
    errno.EACCES: _ALLOW,
    errno.EPERM: _ALLOW,
    errno.EROFS: _ALLOW,
    errno.ENOTDIR: _OTHER,
    errno.EEXIST: _OTHER,
    errno.ENAMETOOLONG: f"give a shorter name, or {_OTHER}",
}
# What libraries in C++ say of a file that cannot be written whole, and of memory.
_UNWRITTEN = ("PytorchStreamWriter failed writing file", "unexpected pos ")
_NO_MEMORY = (
    *("can't allocate memory", "Cannot allocate memory", "cannot allocate memory", "bad_alloc"),
    *("failed to map segment from shared object", "out of memory", "can't start new thread"),
)
_RUST = re.compile(r"\(os error (\d+)\)")


def shortage(error: BaseException) -> str | None:
    """The line to say of an error that means a lack of disk, memory or files, also where a library
    has raised its own in its place; None for any other error.
    """
    return next(filter(None, map(_lack, _behind(error))), None)


def refusal(error: BaseException) -> str | None:
    """`shortage`, or the line for what the system does not allow, such as a folder without permission."""
    if line := shortage(error):
        return line
    if isinstance(error, OSError) and error.errno in _REMEDIES:
        return _line(error.errno, error.filename)
    return None


def _behind(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and those that it was raised from or in the handling of."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        yield error
        error = error.__cause__ or error.__context__


def _lack(error: BaseException) -> str | None:
    text = str(error)
    rust = _RUST.search(text)
    number = error.errno if isinstance(error, OSError) else int(rust[1]) if rust else None
    if number in _SHORTAGES:
        return _line(number, getattr(error, "filename", None))
    if isinstance(error, RuntimeError) and any(words in text for words in _UNWRITTEN):
        return f"a file could not be written to its end: {_SPACE}, or {_SIZE}, then run again"
    if isinstance(error, MemoryError) or any(words in text for words in _NO_MEMORY) or _fails_silently(error):
        said = "" if isinstance(error, MemoryError) else f" ({first_line(error)})"
        return f"out of memory{said}; {_MEMORY}, then run again"
    return None


def _fails_silently(error: BaseException) -> bool:
    """Whether compiled code failed without saying why, under a limit on memory: it could not even make the
    exception ("error return without exception set").
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return isinstance(error, SystemError) and limit != resource.RLIM_INFINITY


def _line(number: int, filename: str | bytes | int | None) -> str:
    where = f"{shown(os.fsdecode(filename))}: " if isinstance(filename, (str, bytes)) else ""
    return f"{where}{os.strerror(number).lower()}; {_REMEDIES[number]}, then run again"
