"""Steps that begin with the libraries imported: forked from a process that has done nothing else.

A fresh interpreter takes seconds to import torch, Transformers and TRL before a step does anything. Python's
own fork server (`multiprocessing`) imports them once (`preloaded.py`) and forks a child per step. It computes
nothing and opens no GPU, so that a child is what a fresh process would be; on a GPU, under a launcher, and
where a process cannot be forked, steps are fresh processes. ``BELLMAN_FRESH_PROCESSES=1`` makes them so
everywhere.
"""

from __future__ import annotations

import atexit
import io
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from multiprocessing import connection, forkserver, reduction
from pathlib import Path
from typing import Any, BinaryIO

from utils.frame.files import REPO_ROOT
from utils.frame.lifeline import end_after

PRELOADED = "utils.driver.preloaded"
OFF = "BELLMAN_FRESH_PROCESSES"


def can_fork(command: Sequence[str]) -> bool:
    """Whether a command can be a fork: a numbered script by this Python, on Linux without an NVIDIA GPU."""
    if sys.platform != "linux" or Path("/dev/nvidiactl").exists() or os.environ.get(OFF, "0") != "0":
        return False
    return len(command) > 1 and command[0] == sys.executable and Path(command[1]).parent == REPO_ROOT


class Forked:
    """A forked step, with what the driver uses of `subprocess.Popen`.

    ``stdout`` and ``stderr`` are file descriptors, `subprocess.PIPE`, or None for this process's own;
    standard input is empty. All forks of a driver have the environment of the first.
    """

    def __init__(
        self,
        command: Sequence[str],
        stdout: int | None = None,
        stderr: int | None = None,
        env: dict[str, str] | None = None,
    ):
        self.stdout, own_out, mine_out = _ends(stdout, 1)
        self.stderr, own_err, mine_err = _ends(stderr, 2)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([PRELOADED])
        with _environment(env):
            forkserver.ensure_running()
        self._lock = threading.Lock()
        self._process = context.Process(
            target=_run, args=(list(command[1:]), _Descriptor(own_out), _Descriptor(own_err))
        )
        self._process.start()
        for end in (mine_out, mine_err):
            if end is not None:
                os.close(end)

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    def poll(self) -> int | None:
        """The exit code (negative: the signal that ended it), None while it runs."""
        with self._lock:
            return self._process.exitcode

    def wait(self) -> int:
        """Wait for the end; returns the exit code."""
        while (code := self.poll()) is None:
            connection.wait([self._process.sentinel])
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal to a child that still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it for certain."""
        self.send_signal(signal.SIGKILL)


class _Descriptor:
    """A file descriptor that is handed to a forked process with the arguments of its function."""

    def __init__(self, number: int):
        self.number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return _detached, (reduction.DupFd(self.number),)


def _detached(duplicate: Any) -> int:
    return duplicate.detach()


def _ends(asked: int | None, own: int) -> tuple[BinaryIO | None, int, int | None]:
    """The stream to read here, the child's descriptor, and which one to close here once the child has it."""
    if asked != subprocess.PIPE:
        return None, own if asked is None else asked, None
    read, write = os.pipe()
    return open(read, "rb"), write, write


class _environment:
    """The environment in which a block starts a process, where it is not this one's."""

    def __init__(self, env: dict[str, str] | None):
        self.env = env

    def __enter__(self) -> None:
        self.before = dict(os.environ)
        if self.env is not None:
            _set_environment(self.env)

    def __exit__(self, *_: Any) -> None:
        if self.env is not None:
            _set_environment(self.before)


def _set_environment(env: dict[str, str]) -> None:
    for name in os.environ.keys() - env.keys():
        del os.environ[name]
    os.environ.update(env)


def _run(words: list[str], stdout: int, stderr: int) -> None:
    """In the child: be the script, as if it had been started by itself."""
    for end, number, name in ((stdout, 1, "stdout"), (stderr, 2, "stderr")):
        os.dup2(end, number)
        os.close(end)
        raw = io.FileIO(number, "wb", closefd=False)
        line_buffering = name == "stderr" or os.isatty(number)
        setattr(
            sys,
            name,
            io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8", line_buffering=line_buffering),
        )
    sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr
    sys.stderr.reconfigure(errors="backslashreplace")
    sys.argv = words
    end_after(multiprocessing.parent_process().join)  # of which the driver is the parent
    try:
        runpy.run_path(words[0], run_name="__main__")
    except SystemExit:
        raise
    except BaseException:
        sys.excepthook(*sys.exc_info())
        raise SystemExit(1) from None
    finally:
        atexit._run_exitfuncs()  # a forked process ends without them
        sys.stdout.flush()
        sys.stderr.flush()
