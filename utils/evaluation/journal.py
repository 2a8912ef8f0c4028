"""The journal of an evaluation: the answers that it has so far, each line under a hash of its own.

A stopped evaluation takes them from there. A line that does not match its hash is no answer: it is made anew.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from utils.frame.files import atomic_path
from utils.models.sampling import Completion
from utils.training.resume_points import DAMAGED

JOURNAL = "answers.journal"
Key = tuple[str, bool]  # a record's id, and whether its samples are meant rather than its greedy answer
Found = dict[Key, list[Completion]]


def journal_of(path: Path, process: int) -> Path:
    """Where a process keeps its finished batches: the first one in ``path``, the others beside it."""
    return path if process == 0 else path.with_name(f"{path.stem}.process_{process}{path.suffix}")


def append(path: Path, found: Found) -> None:
    """Add answers to a journal, and take that to the disk."""
    with open(path, "ab") as file:
        file.write(_lines(found))
        file.flush()
        os.fsync(file.fileno())


def taken_over(path: Path, warn: Callable[[str], None]) -> Found:
    """The answers in the journals of all earlier processes; one with damaged lines is set aside, with a
    warning. `replace_journals` has to follow, before the next `append`.
    """
    found: Found = {}
    for each in (path, *_of_others(path)):
        answers, damaged = read_journal(each)
        found |= answers
        if damaged:
            aside = each.with_name(DAMAGED + each.name)
            os.replace(each, aside)
            warn(
                f"{each.name}: {damaged} damaged line{'s' * (damaged > 1)}; set aside as {aside.name}, "
                "what is missing is answered again"
            )
    return found


def replace_journals(path: Path, found: Found) -> None:
    """Let these answers be all that there are, none of them of another process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if found:
        with atomic_path(path) as temporary:
            temporary.write_bytes(_lines(found))
    else:  # nothing to resume from
        path.unlink(missing_ok=True)
    for each in _of_others(path):
        each.unlink()


def read_journal(path: Path) -> tuple[Found, int]:
    """The answers in a journal, and how many lines are damaged; what a killed process has left half-written
    at the end is none.
    """
    found: Found = {}
    damaged = 0
    for line in path.read_bytes().split(b"\n")[:-1] if path.is_file() else ():
        seal, _, text = line.partition(b" ")
        if seal == _seal(text):
            row = json.loads(text)
            found[row["id"], row["sampled"]] = [Completion(*each) for each in row["completions"]]
        else:
            damaged += 1
    return found, damaged


def _of_others(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.stem}.process_*{path.suffix}"))


def _lines(found: Found) -> bytes:
    lines = []
    for (id, sampled), completions in found.items():
        rows = [(each.text, each.token_ids, each.truncated) for each in completions]
        text = json.dumps({"id": id, "sampled": sampled, "completions": rows}).encode()
        lines.append(_seal(text) + b" " + text + b"\n")
    return b"".join(lines)


def _seal(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest().encode()
