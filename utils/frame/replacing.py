"""What `--overwrite` replaces stays until its replacement has finished: a mistake destroys no result.

The old files wait in a hidden folder beside the new ones. They are deleted once the new work has its
manifest, and moved back where that failed and left nothing to resume from. Every step can be interrupted: the
next execution of the stage finishes it (`settle`).
"""

import contextlib
from pathlib import Path

from utils.frame.files import remove, visible_files
from utils.frame.manifest import MANIFEST, RESUME

REPLACED = ".replaced"
_WHOLE, _MOVING = f"{REPLACED}/whole", f"{REPLACED}/moving"  # all old files, or a part of them on the way


def set_aside(out: Path, keep: str) -> None:
    """Move what a finished stage's folder holds out of the way, but for the file ``keep``."""
    moving = out / _MOVING
    moving.mkdir(parents=True)
    # The manifest goes first: a folder without its files must not look finished.
    for entry in sorted(out.iterdir(), key=lambda entry: entry.name != MANIFEST):
        if entry.name not in (keep, REPLACED):
            entry.rename(moving / entry.name)
    moving.rename(out / _WHOLE)


def settle(out: Path, keep: str, log: str) -> bool:
    """End what replaced a finished stage: delete the old files, leave them waiting, or move them back.

    The file ``keep`` is neither, and what was said in ``log`` in the meantime is added to the old log.
    Returns whether the old files are back.
    """
    whole, moving = out / _WHOLE, out / _MOVING
    if whole.exists():
        if (out / MANIFEST).exists():
            remove(out / REPLACED)
            return False
        if _can_resume(out):
            return False
        with contextlib.suppress(OSError), open(whole / log, "ab") as file:  # the disk may be full
            file.write((out / log).read_bytes())
        for entry in out.iterdir():
            if entry.name not in (keep, REPLACED):
                remove(entry)
        whole.rename(moving)
    if not moving.exists():
        return False
    for entry in sorted(moving.iterdir(), key=lambda entry: entry.name == MANIFEST):
        entry.rename(out / entry.name)
    remove(out / REPLACED)
    return True


def _can_resume(out: Path) -> bool:
    return any(RESUME in file.relative_to(out).parts[:-1] for file in visible_files(out))
