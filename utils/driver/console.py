"""The command ``bellman-bench``, which ``pip install -e .`` makes: 12_driver.py from any folder."""

from __future__ import annotations

import sys

from utils.frame.credentials import redact_tracebacks
from utils.frame.files import REPO_ROOT
from utils.frame.stage_plan import load_script

DRIVER = "12_driver.py"


def main() -> int:
    """Run the driver with this process's command line; returns its exit code."""
    redact_tracebacks()
    if not (REPO_ROOT / DRIVER).is_file():
        print(
            f"error: {DRIVER} is not beside utils/: install from a clone, with pip install -e .",
            file=sys.stderr,
        )
        return 2
    return load_script(DRIVER).main(sys.argv[1:])
