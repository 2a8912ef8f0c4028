"""Which tests are the inner loop, `pytest -m fast`."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "tests" / "unit"
IMPORT = re.compile(r"^(?:from ([\w.]+) import (\([^)]*\)|[^\n]*)|import ([\w.]+))", re.MULTILINE)


def can_be_fast(path: Path) -> bool:
    """Whether a test file belongs to the inner loop: one of units, which does not import TRL.

    What needs TRL trains, and TRL takes longer to import than most tests to run.
    """
    return path.is_relative_to(UNIT) and not needs_trl(path)


@cache
def needs_trl(path: Path) -> bool:
    """Whether a file of ours imports TRL's trainers, itself or by what it imports, as it is imported."""
    modules = list(_imported(path))
    if any(name == "trl" or name.startswith("trl.trainer") for name in modules):
        return True
    files = (ROOT / name.replace(".", "/") for name in modules if name.split(".")[0] in ("tests", "utils"))
    return any(needs_trl(file.with_suffix(".py")) for file in files if file.with_suffix(".py").is_file())


def _imported(path: Path) -> Iterator[str]:
    """The modules that a file imports at its top level, and the names that it imports from them."""
    for module, names, alone in IMPORT.findall(path.read_text(encoding="utf-8")):
        yield module or alone
        yield from (f"{module}.{name}" for name in re.findall(r"(\w+)(?: as \w+)?", names))
