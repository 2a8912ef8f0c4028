"""One execution of a program, with a fault that strikes at a chosen file operation or after some time.

A Python script is run in a fork of this process, so that what it imports can be imported once for all trials,
and so that its file operations can be counted: Python reports each before it happens. Any other program is
only killed after a time and limited from its start.
"""

import contextlib
import os
import resource
import runpy
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate")
LONGEST = 900  # seconds; a program that takes longer hangs


@dataclass(frozen=True)
class Fault:
    """What strikes before the ``operation``-th change of a file below the root (counted from 1; 0: as the
    program starts), or after ``seconds``.
    """

    strike: Callable[[], None] | None = None
    operation: int = 0
    seconds: float | None = None


@dataclass(frozen=True)
class Ended:
    """How an execution ended: exit code (negative: the signal), standard error, seconds, operations."""

    code: int
    said: str
    seconds: float
    operations: int

    @property
    def in_one_line(self) -> bool:
        """Whether it ended well, or stopped with a reason instead of a traceback or a crash."""
        return "Traceback (most recent" not in self.said and (
            self.code == 0 or (self.code > 0 and bool(self.said.strip()))
        )


# ------------------------------------------------------------------------- what strikes, in the program


def die() -> None:
    """SIGKILL."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_a_write(size: int) -> Callable[[], None]:
    """Death inside of whatever write lets a file grow beyond ``size`` bytes, in a library's own code too: the
    system's signal for it, which Python ignores, ends the process.
    """

    def strike() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        limit_files(size)()

    return strike


def limit_files(size: int) -> Callable[[], None]:
    """No file grows beyond ``size`` bytes from now on."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def limit_memory(more: int) -> Callable[[], None]:
    """The process gets ``more`` bytes of memory and no more from now on."""

    def strike() -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + more
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    return strike


# ---------------------------------------------------------------------------------------- an execution


class Started:
    """A program that is running; `wait` for its end."""

    def __init__(self, command: list[str], root: Path, fault: Fault | None = None):
        self.fault = fault or Fault()
        self.begin = time.monotonic()
        self.said, said = os.pipe()
        self.counted, counted = os.pipe()
        words = [word.replace("{root}", str(root)) for word in command]
        self.pid = os.fork()
        if self.pid == 0:
            os.setpgid(0, 0)
            os.close(self.said)
            os.close(self.counted)
            _become(words, root, self.fault, said, counted)
        os.close(said)
        os.close(counted)

    def wait(self) -> Ended:
        """Read what it says until it has ended, and kill it, with all that it started, when it is time."""
        text, deadline = b"", self.begin + (LONGEST if self.fault.seconds is None else self.fault.seconds)
        while True:
            left = max(0.0, deadline - time.monotonic())
            if not select.select([self.said], [], [], left)[0]:
                os.kill(self.pid, signal.SIGKILL)
                deadline += LONGEST
            elif block := os.read(self.said, 1 << 16):
                text += block
            else:
                break
        _, status = os.waitpid(self.pid, 0)
        with open(self.counted, "rb") as file:
            operations = int(file.read() or 0)
        os.close(self.said)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # what it started
        code = os.waitstatus_to_exitcode(status)
        return Ended(code, text.decode(errors="replace"), time.monotonic() - self.begin, operations)


def execute(command: list[str], root: Path, fault: Fault | None = None) -> Ended:
    """Run a command from start to end; ``{root}`` in it stands for the folder."""
    return Started(command, root, fault).wait()


def _become(words: list[str], root: Path, fault: Fault, said: int, counted: int) -> None:
    """In the fork: be the program. Does not return."""
    code = 1
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for own, other in ((0, null), (1, null), (2, said)):
            os.dup2(other, own)
        if not (Path(words[0]).name.startswith("python") and len(words) > 1 and words[1].endswith(".py")):
            if fault.strike is not None and fault.operation == 0:
                fault.strike()
            os.execvp(words[0], words)
        operations = _count_operations(root, fault)
        sys.argv = words[1:]
        sys.path.insert(0, str(Path(words[1]).resolve().parent))
        try:
            if fault.strike is not None and fault.operation == 0:
                fault.strike()
            runpy.run_path(words[1], run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
        sys.stderr.flush()
        os.write(counted, str(operations()).encode())
    finally:
        os._exit(code)


def _count_operations(root: Path, fault: Fault) -> Callable[[], int]:
    """Let the fault strike at its operation; returns how many there were."""
    below, count = str(root), [0]

    def hook(event: str, arguments: tuple) -> None:
        if event == "open":
            path, mode, flags = arguments
            if not (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        elif event in CHANGES:
            path = arguments[0]
        else:
            return
        if isinstance(path, (str, bytes, os.PathLike)) and os.fsdecode(path).startswith(below):
            count[0] += 1
            if count[0] == fault.operation and fault.strike is not None:
                fault.strike()

    sys.addaudithook(hook)
    return lambda: count[0]
