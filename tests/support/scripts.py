"""Numbered scripts, run within this process: a start of Python costs as much as most of what they do."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace

from utils.frame.stage import execute
from utils.frame.stage_plan import load_script


def execute_stage(script: str, argv: Iterable[object]) -> int:
    """Run a numbered script, "10_evaluate.py", with the words of its command line; returns its exit code."""
    module = load_script(script)
    return execute(module.STAGE, module.run, [str(word) for word in argv])


class InThisProcess:
    """What the driver starts, in place of `utils.driver.process.Child`: the imports are made already."""

    def __init__(self, command: Sequence[str], *_):
        _, script, *argv = command
        self.code = execute_stage(Path(script).name, argv)
        self.process = SimpleNamespace(poll=lambda: self.code)  # it has ended

    def wait(self) -> int:
        return self.code

    def reason(self, code: int, *_) -> str:
        return f"exit code {code}"
