"""Numbered scripts, run within this process: a start of Python costs as much as most of what they do."""

from collections.abc import Iterable

from utils.frame.stage import execute
from utils.frame.stage_plan import load_script


def execute_stage(script: str, argv: Iterable[object]) -> int:
    """Run a numbered script, "10_evaluate.py", with the words of its command line; returns its exit code."""
    module = load_script(script)
    return execute(module.STAGE, module.run, [str(word) for word in argv])
