"""Symbolic algebra in a process of its own that can be killed.

SymPy may run for ever or exhaust memory on a program of a few steps. Signals cannot bound it from a
worker thread, nor inside a long C call. So ``call`` sends each comparison as one JSON line to a persistent
child, waits for the answer, and kills the child when the time is up. Importing SymPy takes seconds: a
comparison that is slow has the next child started while it is still waited for, so that one hostile answer
after another costs no more than the time-out each. The child limits its own memory, and sets itself an
alarm so that it also ends when its parent has gone.
"""

import atexit
import contextlib
import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from typing import IO

from utils.frame.files import REPO_ROOT

TIMEOUT_S = 4.0  # wall-clock seconds per comparison; with all around it an answer is graded within 5
SLOW_S = 0.5  # a comparison that takes longer may have to be killed: get the next child ready
START_TIMEOUT_S = 120.0  # to import SymPy, once per child
MEMORY_BYTES = 2 << 30
MAX_REPLY_BYTES = 1 << 16


class WorkerTimeout(Exception):
    """The comparison took longer than its time-out; the child has been killed."""


class WorkerFailure(Exception):
    """The comparison raised, or the child died of it (out of memory, stack overflow)."""


class Worker:
    """A child process that answers one request at a time; threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None
        self._next: subprocess.Popen | None = None  # started, not yet waited for

    def call(self, task: str, timeout: float = TIMEOUT_S, **arguments) -> bool | str:
        """Run ``TASKS[task](**arguments)`` in the child; arguments and result travel as JSON.

        Raises WorkerTimeout after ``timeout`` seconds, WorkerFailure if the task failed. Starting the
        child (once, and after a kill where the next one is not ready yet) is not counted.
        """
        with self._lock:
            try:
                if self._process is None or self._process.poll() is not None:
                    self._start()
                request = {"task": task, "timeout": timeout, "arguments": arguments}
                stdin, _ = _pipes(self._process)
                stdin.write(json.dumps(request).encode() + b"\n")
                stdin.flush()
                reply = self._reply(timeout)
            except BaseException as error:  # also Ctrl-C: an answer left unread would go to the next caller
                self._stop()
                if isinstance(error, OSError):
                    raise WorkerFailure("the symbolic worker died") from None
                raise
        if "error" in reply:
            raise WorkerFailure(reply["error"])
        return reply["result"]

    def close(self) -> None:
        """End the children."""
        with self._lock:
            self._stop()
            self._process, self._next = self._next, None
            self._stop()

    def forget(self) -> None:
        """In a forked copy of this process: leave the children to the parent and start anew when called."""
        self._lock = threading.Lock()
        for process in (self._process, self._next):
            if process is not None:
                for pipe in _pipes(process):
                    pipe.close()
                process.returncode = 0  # not ours to wait for
        self._process = self._next = None

    def _start(self) -> None:
        self._stop()
        self._process, self._next = self._next or _spawn(), None
        try:
            self._read_line(START_TIMEOUT_S)
        except (WorkerTimeout, WorkerFailure):
            command = "python -m utils.grading.worker"
            raise RuntimeError(f"cannot start the symbolic worker; `{command}` shows why") from None

    def _reply(self, timeout: float) -> dict:
        """The child's answer; where it is slow to come, the next child is started meanwhile."""
        started = time.monotonic()
        answered = select.select([_pipes(self._process)[1]], [], [], min(SLOW_S, timeout))[0]
        if not answered and timeout > SLOW_S:
            self._next = self._next or _spawn()
        return self._read_line(timeout, started)

    def _read_line(self, timeout: float, started: float | None = None) -> dict:
        descriptor, data = _pipes(self._process)[1].fileno(), b""
        deadline = (time.monotonic() if started is None else started) + timeout
        while not data.endswith(b"\n"):
            remaining = deadline - time.monotonic()
            if remaining <= 0 or not select.select([descriptor], [], [], remaining)[0]:
                raise WorkerTimeout(f"no result within {timeout:g} s")
            chunk = os.read(descriptor, MAX_REPLY_BYTES)
            if not chunk:
                raise WorkerFailure("the symbolic worker died")
            data += chunk
        return json.loads(data)

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        stdin, stdout = _pipes(process)
        with contextlib.suppress(OSError):  # what was still to be written to a dead child
            stdin.close()
        stdout.close()


def _pipes(process: subprocess.Popen | None) -> tuple[IO[bytes], IO[bytes]]:
    """Standard input and output of a child, which `_spawn` gave it."""
    assert process is not None and process.stdin is not None and process.stdout is not None
    return process.stdin, process.stdout


def _spawn() -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "utils.grading.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=REPO_ROOT,
    )


_WORKER = Worker()
atexit.register(_WORKER.close)
os.register_at_fork(after_in_child=_WORKER.forget)
call = _WORKER.call


def serve() -> None:
    """The child's loop: read requests from stdin, write replies to stdout, until stdin closes."""
    import resource

    with contextlib.suppress(ValueError, OSError):  # not every system has this limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    logging.disable(logging.CRITICAL)
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    sys.stdout = sys.stderr  # what a library prints must not end up among the replies

    from utils.grading.symbolic import TASKS, warm_up

    warm_up()
    print(json.dumps({"result": True}), file=replies, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, request["timeout"] + 1.0)  # default action: end the process
        try:
            reply = {"result": TASKS[request["task"]](**request["arguments"])}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"[:500]}
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    serve()
