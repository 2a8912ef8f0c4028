"""The layouts that people have raw data in: what the file of a split is called, and how its items are read.

The name says which split a file is of; its content says whether it is a JSON array, a JSON object a line or
parquet, whatever its ending.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from utils.data.reading import FILE, Problem, RawItem, read_json_items, read_jsonl_items

# As other sets, the hub and its users call splits; the folders are those of hub configurations.
_STEMS = {"train": ("train",), "val": ("val", "valid", "validation", "dev"), "test": ("test",)}
_FOLDERS = ("", "data", "main", "default", "dataset")
_ENDINGS = (".jsonl", ".json", ".parquet")
_SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})\.parquet")
_ARRAY = re.compile(rb"\s*\[\s*(?:\{|\])")
_SHOWN = 8  # files of a folder that a message names
_LOOKED_AT = 1000  # of these

Found = tuple[list[RawItem], list[Problem]]


def find_file(root: Path, split: str, names: Sequence[str]) -> Path | None:
    """The raw file (or folder) of a split below ``root``: the first of its form's own ``names``, else of the
    names that other layouts have; of a file in parts the first part."""
    for name in names:
        if (root / name).exists():
            return root / name
    for folder in _FOLDERS:
        for stem in _STEMS[split]:
            found = [root / folder / f"{stem}{ending}" for ending in _ENDINGS]
            found += sorted((root / folder).glob(f"{stem}-*-of-*.parquet"))
            for path in found:
                if path.is_file():
                    return path
    return None


def parts_of(path: Path) -> list[Path]:
    """The file itself, or all parts of a parquet file in parts (``train-00000-of-00002.parquet``)."""
    shard = _SHARD.fullmatch(path.name)
    return sorted(path.parent.glob(f"{shard[1]}-*-of-{shard[2]}.parquet")) if shard else [path]


def files_below(root: Path) -> str:
    """What a folder holds, for a message: "train.csv, notes/readme.md and 3 more".

    Someone's home may have been named: of more files than `_LOOKED_AT` it says that there are many more.
    """
    if not root.is_dir():
        return "no such folder"
    files = (path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    found = sorted(islice(files, _LOOKED_AT + 1))
    count = "many" if len(found) > _LOOKED_AT else len(found) - _SHOWN
    more = f" and {count} more" if len(found) > _SHOWN else ""
    return ", ".join(found[:_SHOWN]) + more if found else "nothing"


def read_items(paths: Sequence[Path], markers: Sequence[str]) -> Found:
    """The items of a raw split, numbered over all its files, and what is wrong with these.

    ``markers`` are keys of which every row has one.
    """
    items: list[RawItem] = []
    problems: list[Problem] = []
    alike = len({path.name for path in paths}) < len(paths)
    for path in paths:
        file = f"{path.parent.name}/{path.name}" if alike else path.name
        found, wrong = _read_file(path, markers)
        rows = max((item.row + 1 for item in items), default=0)
        items += [replace(item, file=file, row=rows + item.row) for item in found]
        problems += [replace(problem, file=file) for problem in wrong]
    shard = _SHARD.fullmatch(paths[0].name)
    count = len([path for path in paths if path.parent == paths[0].parent])
    if shard and count != int(shard[2]):
        message = f"{count} of {int(shard[2])} parts are there; fetch the others"
        problems.append(Problem(paths[0].name, FILE, "", "error", "missing_part", message))
    return items, problems


def _read_file(path: Path, markers: Sequence[str]) -> Found:
    try:
        with open(path, "rb") as file:
            head = file.read(1 << 16)
    except OSError:
        return read_jsonl_items(path)  # which says why it cannot be read
    if head.startswith(b"version https://git-lfs"):
        message = "a Git LFS pointer in place of the file; fetch it with git lfs pull"
        return [], [Problem(path.name, FILE, "", "error", "not_fetched", message)]
    if head.startswith(b"PAR1") or path.suffix == ".parquet":
        return _read_parquet(path)
    head = head.removeprefix(b"\xef\xbb\xbf")
    if path.suffix == ".json":
        lines = head.lstrip().startswith(b"{") and _is_row(head.lstrip().partition(b"\n")[0], markers)
    else:
        lines = not _ARRAY.match(head)
    return read_jsonl_items(path) if lines else read_json_items(path, markers)


def _is_row(line: bytes, markers: Sequence[str]) -> bool:
    """Whether a file that should be an array starts with a row as a line; a cut off line counts as one."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return line.count(b"{") > 0 and len(line) >= 1 << 15
    return isinstance(value, dict) and any(marker in value for marker in markers)


def _read_parquet(path: Path) -> Found:
    from pyarrow import ArrowException, parquet

    try:
        rows = parquet.read_table(path).to_pylist()
    except (ArrowException, OSError) as error:
        message = f"no parquet file that can be read: {str(error).splitlines()[0]}"
        return [], [Problem(path.name, FILE, "", "error", "unreadable", message)]
    if not rows:
        return [], [Problem(path.name, FILE, "", "error", "no_rows", "the file holds no rows")]
    # A column that a row lacks is null in it.
    known = ({key: value for key, value in row.items() if value is not None} for row in rows)
    return [RawItem(path.name, number, f"row {number}", row) for number, row in enumerate(known)], []
