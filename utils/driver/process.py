"""One step's process: its output is passed on, and why it failed is read from its standard error."""

from __future__ import annotations

import codecs
import collections
import contextlib
import fcntl
import os
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
import tty
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TextIO

from utils.driver.fork_server import Forked, can_fork
from utils.frame.credentials import redact
from utils.frame.files import shown
from utils.frame.lifeline import lifeline_of

ERROR = "error: "  # how the frame begins its one line about a user's mistake
GRACE = 1.0  # seconds: Ctrl-C in a terminal reaches the steps as well, which then end by themselves
PATIENCE = 45.0  # seconds between the polite and the other kill; torchrun gives its processes 30 of them
LINGER = 5.0  # seconds to wait for output that a step's own children may still hold open
_LONGEST = 500  # characters of a reason
_EXCEPTION = re.compile(r"[\w.]+(Error|Exception|Exit|Interrupt)\b")
_RANK = re.compile(r"^\[rank\d+\]: ?")  # what PyTorch puts before the lines of a crash in one of several
_LAUNCHER = "accelerate/commands/launch.py"  # in the traceback with which a launcher ends after its steps
# The exit code or the signal of the process that failed first, in a launcher's last words.
_FIRST_TO_FAIL = re.compile(
    r"exitcode\s+: (-?\d+)|non-zero exit status (\d+)|died with <Signals\.\w+: (\d+)>"
)
_TERMINAL = (24, 200)  # rows and columns of the terminal that a watched step finds on standard error
_screen = threading.Lock()


def say(line: str, stream: TextIO | None = None) -> None:
    """Print one whole line, however many steps print at the same time."""
    stream = stream or sys.stdout
    with _screen:
        stream.write(redact(line) + "\n")
        stream.flush()


def start(command: Sequence[str], **given: Any) -> subprocess.Popen | Forked:
    """A process of a command: a fork that has the libraries imported, where that can be."""
    if can_fork(command):
        return Forked(command, **given)
    end, own = os.pipe()
    given["env"] = (given.get("env") or os.environ) | lifeline_of(end)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[end], **given)
    os.close(end)
    process.lifeline = os.fdopen(own, "wb")  # open as long as this process knows of the other
    return process


class Watcher(Protocol):
    """What is told of a step's output as it comes."""

    def line(self, text: str) -> None:
        """A line of standard output."""

    def bar(self, text: str) -> None:
        """A progress bar as it looks now; nothing once it is cleared."""


class Child:
    """A running step.

    Alone (``label`` None) it has the terminal to itself: its standard output goes there directly, and its
    standard error through this process, which sees a terminal if this one does, so that progress bars work.
    With a label, every line of both is printed whole, after the label; progress bars keep quiet, for they
    find no terminal.
    With a watcher as well, it finds a terminal on standard error, and its bars and the lines of its standard
    output are the watcher's to show.

    A line that begins with "error: " is kept back if nothing follows it and the step fails: the driver says
    it, with the methods that it concerns.
    """

    def __init__(
        self,
        command: Sequence[str],
        label: str | None = None,
        env: dict[str, str] | None = None,
        watcher: Watcher | None = None,
    ):
        self.tail: collections.deque[str] = collections.deque(maxlen=200)
        self.crashed = False
        self._held = ""
        self._label, self._watcher = label, watcher
        if watcher:
            read, write = _terminal(struct.pack("HHHH", *_TERMINAL, 0, 0))
            self.process = start(command, stdout=subprocess.PIPE, stderr=write, env=env)
            os.close(write)
            readers = [(self._relay, self.process.stdout), (self._watch_errors, read)]
        elif label is None:
            read, write = _pipe_like(sys.stderr)
            self.process = start(command, stderr=write, env=env)
            os.close(write)
            readers = [(self._pass_on, read)]
        else:
            self.process = start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
            readers = [(self._relay, self.process.stdout), (self._relay_errors, self.process.stderr)]
        self._threads = [threading.Thread(target=read, args=(end,), daemon=True) for read, end in readers]
        for thread in self._threads:
            thread.start()

    def wait(self) -> int:
        """Wait for the end and all output; returns the exit code (negative: the signal that ended it).

        Under a launcher it is that of the process that failed first, for a launcher's own is always 1.
        """
        code = self.process.wait()
        for thread in self._threads:
            thread.join(LINGER)
        if self._held and not code:
            self._print_error(self._held)
        found = [match for line in self._said()[1] if (match := _FIRST_TO_FAIL.search(line))]
        if not code or not found:
            return code
        exited, called, killed = found[-1].groups()
        return int(exited or called or f"-{killed}")

    def _said(self) -> tuple[list[str], list[str]]:
        """The last lines on standard error: the step's own, and those of a launcher that it failed under."""
        lines = list(self.tail)
        end = next((number for number, line in enumerate(lines) if _LAUNCHER in line), len(lines))
        return lines[:end], lines[end:]

    def reason(self, code: int, run_dir: Path, folder: str) -> str:
        """Why the step failed, on one line that names no place outside the run."""
        log = f"see {folder}/stage.log"
        own, launchers = self._said()
        said = [line.removeprefix(ERROR) for line in own if line.startswith(ERROR)]
        named = [line for line in own if _EXCEPTION.match(line)] if self.crashed else []
        if code < 0:
            text = f"ended by {_signal_name(-code)} ({log})"
        elif said:
            text = said[-1]
        elif self.crashed and (named or own and not launchers):
            text = f"{_shortened((named or own)[-1].strip())} ({log})"
        else:
            text = f"exit code {code} ({log})"
        return f"{folder}: {_shortened(_within(text, run_dir))}"

    def _relay(self, end: BinaryIO) -> None:
        """Print every line of standard output."""
        for line in end:
            text = _last_written(line.decode(errors="replace").rstrip())
            if self._watcher:
                self._watcher.line(text)
            else:
                say(f"[{self._label}] {text}")

    def _relay_errors(self, end: BinaryIO) -> None:
        """Print every line of standard error."""
        for line in end:
            self._finish(_last_written(line.decode(errors="replace").rstrip()))

    def _watch_errors(self, end: int) -> None:
        """Print every line of standard error, and tell the watcher of the bar that stands after the last."""
        rest = ""
        for piece in _pieces(end):
            *whole, rest = (rest + piece).split("\n")
            for line in whole:
                self._finish(_last_written(line.rstrip("\r")))
            rest = _last_written(rest)
            self._watcher.bar(rest)
        if rest.strip():
            self._finish(rest)

    def _pass_on(self, end: int) -> None:
        """Write what arrives at once, whole lines or not; only what may become an error line waits."""
        line, written = "", 0
        for piece in _pieces(end):
            *whole, line_begun = (line + piece).split("\n")
            for finished in whole:
                self._finish(finished, written)
                written = 0
            line = line_begun
            if not (ERROR.startswith(line) or line.startswith(ERROR)):
                self._release()
                _write(line[written:])
                written = len(line)
        if line:
            self._finish(line, written)

    def _finish(self, line: str, written: int = 0) -> None:
        """Keep a line of standard error, and print what is not yet written of it."""
        said = _RANK.sub("", _last_written(line.rstrip("\r")))
        self.tail.append(said)
        self.crashed |= said.startswith("Traceback (most recent call last)")
        self._release()
        if line.startswith(ERROR):
            self._held = line
        else:
            self._print_error(line[written:])

    def _release(self) -> None:
        """Print the error line that was kept back, for it is not the last."""
        if self._held:
            self._print_error(self._held)
            self._held = ""

    def _print_error(self, line: str) -> None:
        say(line if self._label is None else f"[{self._label}] {line}", sys.stderr)


@contextlib.contextmanager
def interrupts_held_back() -> Iterator[None]:
    """Let SIGINT and SIGTERM wait for the block's end: no process is to be started and then lost sight of.

    For the main thread. What is started within has the signals' default handlers.
    """
    held: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda which, _: held.append(which)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if held:
            signal.raise_signal(held[0])


def stop(children: Sequence[Child]) -> None:
    """End all that still run: politely, so that they can tidy up, then for certain."""
    running = [child.process for child in children if child.process.poll() is None]
    try:
        for pause, number in ((GRACE, signal.SIGTERM), (PATIENCE, signal.SIGKILL)):
            end = time.monotonic() + pause
            while any(process.poll() is None for process in running) and time.monotonic() < end:
                time.sleep(0.02)
            for process in running:
                if process.poll() is None:
                    process.send_signal(number)
    finally:  # also where a second Ctrl-C cuts the waiting short
        for process in running:
            if process.poll() is None:
                process.kill()
            process.wait()


def _pipe_like(stream: TextIO) -> tuple[int, int]:
    """Two ends of a pipe, or of a terminal of the same size where the stream is one."""
    try:
        size = fcntl.ioctl(stream.fileno(), termios.TIOCGWINSZ, bytes(8)) if stream.isatty() else None
    except (OSError, ValueError):
        size = None
    return os.pipe() if size is None else _terminal(size)


def _terminal(size: bytes) -> tuple[int, int]:
    """Two ends of a terminal of that size, as the system packs it (struct winsize)."""
    read, write = os.openpty()
    tty.setraw(write)  # what is written comes out unchanged; the real terminal does the rest
    fcntl.ioctl(write, termios.TIOCSWINSZ, size)
    return read, write


def _pieces(end: int) -> Iterator[str]:
    """The text that arrives at a file descriptor, as it arrives."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    with contextlib.suppress(OSError):  # how a pseudo-terminal says that its other end is closed
        while piece := os.read(end, 1 << 16):
            yield decoder.decode(piece)
    os.close(end)


def _write(text: str) -> None:
    with _screen:
        sys.stderr.write(text)
        sys.stderr.flush()


def _last_written(line: str) -> str:
    """What a carriage return has not written over, as of a progress bar."""
    return line.rpartition("\r")[2]


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _within(text: str, run_dir: Path) -> str:
    """The text with paths relative to the run, and only what can be printed."""
    for folder in (str(run_dir), shown(run_dir)):
        text = text.replace(f"{folder}/", "")
    text = text.replace(str(run_dir.parent), "outputs")
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
