"""Which form the raw data of a folder have: by the first row of a file, else by the folder's name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from utils.data.layouts import files_below, find_file
from utils.data.reader import SPLITS
from utils.data.readers import all_readers
from utils.frame.files import REPO_ROOT, UserError, shown

CONFIGS = "configs/datasets"
_HEAD = 1 << 20  # bytes that hold a row of any data set


def tier_for(root: Path) -> str:
    """The shipped dataset tier for a folder that was named without one: "configs/datasets/finqa.yaml".

    The folder's name decides between sets of one form, and where nothing is downloaded yet. Raises UserError
    where neither content nor name tell.
    """
    shipped = {file.stem: f"{CONFIGS}/{file.stem}.yaml" for file in (REPO_ROOT / CONFIGS).glob("*.yaml")}
    if root.name.lower() in shipped:
        return shipped[root.name.lower()]
    if (form := form_of(root)) is not None:
        return shipped[form]
    *some, last = (f"{CONFIGS}/{name}.yaml" for name in all_readers() if name != "sample")
    raise UserError(
        f"--data_root {shown(root)}: found {files_below(root)}, of no data set that is known; "
        f"name its form by --dataset_config {', '.join(some)} or {last}"
    )


def form_of(root: Path) -> str | None:
    """The form of the first file of a split below ``root`` that a row can be read of; None for none."""
    for split in reversed(SPLITS):  # test is small
        for reader in all_readers().values():
            path = find_file(root, split, reader.files[split])
            row = None if path is None else first_row(path)
            for form in all_readers().values():
                if row is not None and form.recognises(row):
                    return form.name
    return None


def first_row(path: Path) -> dict[str, Any] | None:
    """The first row of a raw file (JSON, JSONL, parquet, a folder of JSON); None where none can be read."""
    if path.is_dir():
        files = sorted(path.rglob("*.json"))
        return first_row(files[0]) if files else None
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD)
        if head.startswith(b"PAR1"):
            from pyarrow import parquet

            rows = next(parquet.ParquetFile(path).iter_batches(batch_size=1)).to_pylist()
            return rows[0] if rows else None
        text = head.decode("utf-8-sig", errors="ignore").lstrip().removeprefix("[").lstrip()
        row = json.JSONDecoder().raw_decode(text)[0]
    except (OSError, ValueError, RecursionError, StopIteration):
        return None
    return row if isinstance(row, dict) else None
