"""The teacher's scores of completions seen before: two float32 numbers a token, bounded in bytes.

An entry's key is a hash of everything its scores depend on (`score_key`): the teacher's identity (weights,
number format, alpha), the prompt's tokens and the completion's. When room is needed, entries are dropped
(`cachetools`)

    lru   least recently used first
    lfu   least frequently used first; of equals, the one that reached its count first
    fifo  oldest first

`save` and `load` keep order, counts and statistics, so that a run resumed from a file goes on exactly as it
would have: the same hits, the same evictions. A folder is shared between processes and runs instead: read at
the start (`open_cache`), merged into at the end (`ScoreCache.publish`) under a file lock.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cachetools
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from utils.frame.files import UserError, atomic_path, first_line, resolve_path, shown
from utils.models.settings import TeacherCacheSection

logger = logging.getLogger(__name__)

EVICTION = {"lru": cachetools.LRUCache, "lfu": cachetools.LFUCache, "fifo": cachetools.FIFOCache}
ENTRY_BYTES = 480  # measured: what Python holds for an entry besides its numbers (key, array, order)
DIGEST_BYTES = 32
SHARED_FILE = "teacher_scores.safetensors"
COUNTS = ("hits", "misses", "evictions")


def score_key(identity: str, prompt: np.ndarray, completion: np.ndarray) -> bytes:
    """Return the key (32 bytes) of a completion, int64 [C], of a prompt, int64 [P], under a teacher."""
    digest = hashlib.sha256(f"{identity} {len(prompt)} {len(completion)} ".encode())
    digest.update(np.ascontiguousarray(prompt, dtype="<i8"))
    digest.update(np.ascontiguousarray(completion, dtype="<i8"))
    return digest.digest()


@dataclass
class Entry:
    """The scores of one completion, float32 [2, n]: Q, then V; and how often they were stored or found."""

    scores: np.ndarray
    uses: int = 1

    @property
    def size(self) -> int:
        """Bytes that count against the capacity."""
        return self.scores.nbytes + ENTRY_BYTES


class ScoreCache:
    """At most `capacity` bytes of scores; 0 switches it off: nothing is stored, looked up or counted."""

    def __init__(self, capacity: int, eviction: str = "lru", folder: Path | None = None):
        """`eviction` is lru, lfu or fifo; `folder` is where `publish` merges to, None for nowhere."""
        if capacity < 0 or eviction not in EVICTION:
            raise ValueError(f"need capacity >= 0 and eviction in {', '.join(EVICTION)}")
        self.capacity, self.eviction, self.folder = capacity, eviction, folder
        self._clear()

    def _clear(self) -> None:
        self._entries = EVICTION[self.eviction](self.capacity, getsizeof=lambda entry: entry.size)
        self._counts = dict.fromkeys(COUNTS, 0)

    @property
    def stats(self) -> dict[str, int]:
        """Hits, misses and evictions so far; entries held, and their bytes against the capacity."""
        return self._counts | {"entries": len(self._entries), "bytes": int(self._entries.currsize)}

    def get(self, key: bytes) -> np.ndarray | None:
        """Return float32 [2, n] (Q, then V; not to be written to), or None. Counts a hit or a miss."""
        if not self.capacity:
            return None
        entry = self._entries.get(key)  # cachetools counts this as an access
        self._counts["misses" if entry is None else "hits"] += 1
        if entry is None:
            return None
        entry.uses += 1
        return entry.scores

    def put(self, key: bytes, scores: np.ndarray) -> None:
        """Store float32 [2, n] under a key that is not there yet; what exceeds the capacity is not stored."""
        entry = Entry(np.array(scores, dtype=np.float32))
        if entry.size > self.capacity or key in self._entries:
            return
        before = len(self._entries)
        self._entries[key] = entry
        self._counts["evictions"] += before + 1 - len(self._entries)

    # ---------------------------------------------------------------------------------------------- state

    def _listed(self) -> list[tuple[bytes, Entry]]:
        """Return the entries, first to be evicted first."""
        listed = [self._entries.popitem() for _ in range(len(self._entries))]
        self._fill(listed)
        return listed

    def _fill(self, listed: Iterable[tuple[bytes, Entry]]) -> None:
        """Bring back entries as `_listed` gave them; the first ones go where they exceed the capacity."""
        lfu = self.eviction == "lfu"
        for key, entry in sorted(listed, key=lambda item: item[1].uses) if lfu else listed:
            if entry.size <= self.capacity:
                self._entries[key] = entry
                for _ in range(entry.uses - 1 if lfu else 0):  # cachetools counts accesses itself
                    self._entries[key]

    def save(self, path: str | Path) -> None:
        """Write entries, order, counts and statistics to a safetensors file with a checksum, atomically."""
        _write(Path(path), self._listed(), self._counts)

    def load(self, path: str | Path) -> bool:
        """Take over what `save` wrote, in place of all that is held; return whether there was something.

        A file that is not there leaves the cache empty. So does one that is damaged (truncated, changed, of
        another format, with numbers that are not finite), with a warning; the next `save` replaces it.
        """
        self._clear()
        if not self.capacity or not Path(path).exists():
            return False
        try:
            listed, counts = _read(Path(path))
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            logger.warning(
                "%s: damaged (%s); starting with an empty teacher cache", shown(path), first_line(error)
            )
            return False
        self._fill(listed)
        self._counts = counts
        return True

    def publish(self) -> None:
        """Merge into the shared folder's file, if there is a folder; other processes wait their turn.

        What others stored meanwhile stays, as far as this cache's capacity goes; own entries count as the
        more recent. A folder that cannot be written costs a warning, not the run.
        """
        if self.folder is None or not self.capacity:
            return
        path = self.folder / SHARED_FILE
        try:
            with _locked(self.folder):
                merged = ScoreCache(self.capacity, self.eviction)
                merged.load(path)
                both = dict(merged._listed())
                for key, entry in self._listed():
                    theirs = both.pop(key, entry)
                    both[key] = Entry(entry.scores, max(entry.uses, theirs.uses))
                merged._clear()
                merged._fill(both.items())
                merged.save(path)
        except OSError as error:
            logger.warning("%s: the teacher cache could not be saved (%s)", shown(path), error.strerror)


def open_cache(section: TeacherCacheSection) -> ScoreCache:
    """Return the configured cache, holding what its folder has; its statistics start at 0.

    Call `publish()` when the run is done. Raises UserError where the folder cannot be made.
    """
    folder = resolve_path(section.folder) if section.folder and section.capacity_mb else None
    cache = ScoreCache(int(section.capacity_mb * 1e6), section.eviction, folder)
    if folder is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"teacher_cache.folder: {shown(folder)} cannot be made ({error.strerror}); "
                "choose a folder that can be written, or leave it empty"
            ) from None
        cache.load(folder / SHARED_FILE)
        cache._counts = dict.fromkeys(COUNTS, 0)
    return cache


# ------------------------------------------------------------------------------------------------ the file


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the system releases it if the process dies."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write(path: Path, listed: list[tuple[bytes, Entry]], counts: dict[str, int]) -> None:
    keys = np.frombuffer(b"".join(key for key, _ in listed), dtype=np.uint8)
    entries = [entry for _, entry in listed]
    tensors = {
        "keys": keys.reshape(-1, DIGEST_BYTES),
        "lengths": np.array([entry.scores.shape[1] for entry in entries], dtype=np.int64),
        "uses": np.array([entry.uses for entry in entries], dtype=np.int64),
        "scores": np.concatenate(
            [np.empty((2, 0), np.float32), *(entry.scores for entry in entries)], axis=1
        ),
    }
    about = {"counts": counts, "checksum": _checksum(tensors, counts)}
    with atomic_path(path) as temporary:
        # One key of metadata: safetensors writes several in an order that changes between processes.
        save_file(tensors, temporary, metadata={"about": json.dumps(about, sort_keys=True)})


def _read(path: Path) -> tuple[list[tuple[bytes, Entry]], dict[str, int]]:
    """Return what `_write` was given. Raises one of several errors for anything else."""
    with safe_open(path, framework="numpy") as file:
        about = json.loads(file.metadata()["about"])
        tensors = {name: file.get_tensor(name) for name in ("keys", "lengths", "uses", "scores")}
    counts = {name: about["counts"][name] for name in COUNTS}
    if about["checksum"] != _checksum(tensors, counts):
        raise ValueError("wrong checksum")
    keys, lengths, uses, scores = tensors.values()
    number, total = len(keys), int(lengths.sum())
    wanted = {"keys": (number, DIGEST_BYTES), "lengths": (number,), "uses": (number,), "scores": (2, total)}
    if {name: tensor.shape for name, tensor in tensors.items()} != wanted or scores.dtype != np.float32:
        raise ValueError("wrong shapes")
    if (lengths < 1).any() or (uses < 1).any() or not np.isfinite(scores).all():
        raise ValueError("impossible numbers")
    pieces = np.split(scores, lengths.cumsum()[:-1], axis=1) if number else []
    entries = [Entry(np.array(piece), int(use)) for piece, use in zip(pieces, uses, strict=True)]
    return list(zip((key.tobytes() for key in keys), entries, strict=True)), counts


def _checksum(tensors: dict[str, np.ndarray], counts: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(counts, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tensors[name].shape} ".encode())
        digest.update(np.ascontiguousarray(tensors[name]))
    return digest.hexdigest()
