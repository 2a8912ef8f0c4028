"""A step that the driver has started ends with the driver, however that ends: as by Ctrl-C, to be resumed.

The driver holds one end of a pipe, which the system closes when it is gone. (A launcher's processes do not
inherit the other end; they run on, and their folder's lock refuses the next driver until they have ended.)
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable

LIFELINE = "BELLMAN_LIFELINE"  # the pipe's number here, and its inode, which tells it from another file


def lifeline_of(end: int) -> dict[str, str]:
    """The environment that tells a process which inherits this end of a pipe to end with the other one."""
    return {LIFELINE: f"{end}:{os.fstat(end).st_ino}"}


def end_with_driver() -> None:
    """Let this process end with the driver that has started it; nothing where none has."""
    end, _, inode = os.environ.pop(LIFELINE, "").partition(":")
    with contextlib.suppress(ValueError, OSError):
        if os.fstat(int(end)).st_ino == int(inode):
            end_after(lambda: os.read(int(end), 1))


def end_after(wait: Callable[[], object]) -> None:
    """End this process, politely, once ``wait`` has returned."""

    def watch() -> None:
        wait()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
