"""Small shared pieces: the user's error, atomic files, JSON / JSONL / CSV, content hashes, derived seeds."""

import contextlib
import csv
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

REPO_ROOT = Path(__file__).resolve().parent.parent.parent

TEMPORARY_PREFIX = ".tmp-"


class UserError(Exception):
    """A mistake the user can mend. One line: what is wrong, where, and how to fix it (exit code 2)."""


def first_line(error: BaseException) -> str:
    """What an error says, as a part of one line: its first line of at most 200 characters, else its kind."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


# ---------------------------------------------------------------------------------------------- paths


def resolve_path(value: str | Path) -> Path:
    """Return the absolute path a configuration value stands for.

    Relative values are taken from the repository root, so that a stage gives the same result from any
    working directory; where nothing is there, an existing path below the working directory is used.
    """
    path = Path(value).expanduser()
    if path.is_absolute():
        return path
    rooted = REPO_ROOT / path
    return path.absolute() if not rooted.exists() and path.exists() else rooted


def shown(path: str | Path) -> str:
    """Return `path` as a message shows it: relative to the working directory or repository if below."""
    path = Path(path)
    for root in (Path.cwd(), REPO_ROOT):
        if path.is_absolute() and path.is_relative_to(root):
            return str(path.relative_to(root))
    return str(path)


# ----------------------------------------------------------------------------------------- atomic files


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it onto `path` on success, remove it on failure.

    The caller creates a file or a directory at the yielded path. An existing directory at `path` is replaced.
    Readers never see a half-written file; a killed process leaves at most a hidden `.tmp-…` name behind.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tag = f"{TEMPORARY_PREFIX}{os.getpid()}-{uuid.uuid4().hex[:8]}"
    temporary = path.parent / f"{tag}-{path.name}"
    try:
        yield temporary
        if temporary.is_dir() and path.is_dir():
            # A rename cannot replace a directory that has files in it, so the old one steps aside first.
            old = path.parent / f"{tag}-old-{path.name}"
            os.replace(path, old)
            os.replace(temporary, path)
            shutil.rmtree(old)
        else:
            os.replace(temporary, path)
    finally:
        remove(temporary)


def remove(path: Path) -> None:
    """Delete a file, link or directory if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically and durably (the data reaches the disk before the name does)."""
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def dump_json(obj: Any) -> str:
    """Return the canonical JSON text: sorted keys, indent 2, no NaN or infinity, trailing newline."""
    return json.dumps(obj, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: str | Path, obj: Any) -> None:
    """Write canonical JSON atomically. Raises ValueError on NaN or infinity."""
    write_text(path, dump_json(obj))


def read_json(path: str | Path) -> Any:
    """Read one JSON document. Raises UserError naming file and line when it is missing or damaged."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(f"{shown(path)}: no such file") from None
    return json_of(data, path)


def json_of(data: bytes, path: str | Path) -> Any:
    """The value of a JSON document's bytes. Raises UserError naming file and line where it is damaged."""
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{shown(path)}: not UTF-8 text (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{shown(path)}:{error.lineno}: not valid JSON ({error.msg})") from None
    except (RecursionError, ValueError):  # of digits there can be too many
        raise UserError(f"{shown(path)}: nested too deeply, or a number too long") from None


def write_jsonl(path: str | Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object a line (key order kept), atomically. `rows` may be a generator."""
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def jsonl_values(path: str | Path) -> Iterator[tuple[int, Any]]:
    """Yield the number (from 1) and the value of every line that is not blank.

    Raises UserError naming file:line for what is not JSON in UTF-8.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{shown(path)}: {(error.strerror or 'cannot be read').lower()}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{shown(path)}:{number}: {json_fault(error)}") from None
        yield number, value


def json_fault(error: ValueError | RecursionError) -> str:
    """What is wrong with a text that is not JSON in UTF-8, as a clause."""
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8 text"
    nested = isinstance(error, RecursionError)
    reason = "nested too deeply" if nested else getattr(error, "msg", str(error).split(";")[0])
    return f"not valid JSON ({reason})"


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Read one JSON object a line, blank lines skipped. Raises UserError as `jsonl_values`."""
    rows = list(jsonl_values(path))
    for number, row in rows:
        if not isinstance(row, dict):
            raise UserError(f"{shown(path)}:{number}: expected an object, found {type(row).__name__}")
    return [row for _, row in rows]


def write_csv(path: str | Path, rows: Iterable[dict[str, Any]], columns: list[str]) -> None:
    """Write a CSV with a header, atomically. Raises ValueError where a row has a key outside `columns`.

    Texts that a spreadsheet would run as a formula are `inert`.
    """
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: inert(value) for key, value in row.items()} for row in rows)


def read_csv(path: str | Path) -> list[dict[str, str]]:
    """The rows of a CSV that `write_csv` wrote, by column; its texts as they stand in the file."""
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def inert(value: Any) -> Any:
    """A cell with an apostrophe before a text that begins as a formula does ("=", "+", "-", "@", tab …).

    A number that is written out, "-3.5", stays.
    """
    if not isinstance(value, str) or not re.match(r"'*[=+\-@\t\r]", value) or _is_number(value):
        return value
    return f"'{value}"


def as_written(text: str) -> str:
    """A cell's text without the apostrophe that `inert` put before it."""
    return text[1:] if re.match(r"'+[=+\-@\t\r]", text) and not _is_number(text[1:]) else text


def _is_number(text: str) -> bool:
    return bool(re.fullmatch(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?%?", text))


# ------------------------------------------------------------------------------------- hashes and seeds


def sha256_of(path: str | Path) -> str:
    """Return the SHA-256 (hex) of a file, or of a directory's sorted relative names and file hashes.

    Hidden names (starting with ".") in a directory do not count.
    """
    path = Path(path)
    if path.is_dir():
        return sha256_of_tree({str(file.relative_to(path)): sha256_of(file) for file in visible_files(path)})
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_of_tree(hashes: dict[str, str]) -> str:
    """Return the hash of a directory given relative name -> file hash."""
    return hashlib.sha256(
        "".join(f"{name}\0{hashes[name]}\n" for name in sorted(hashes)).encode()
    ).hexdigest()


def visible_files(folder: Path) -> list[Path]:
    """Return all files below `folder`, sorted, leaving out names that start with "."."""
    found = []
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(root, name) for name in files if not name.startswith(".")]
    return sorted(found)


def derive_seed(seed: int, *names: str | int) -> int:
    """Return a stable sub-seed in [0, 2**31) for a named purpose, independent between names."""
    text = json.dumps([seed, *names])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
