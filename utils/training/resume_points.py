"""Resume points that are whole: each is sealed by the hashes of its files, and taken only while they hold.

One of a training holds, beside the trainer's state, the checkpoints, samples and rows of logs that the stage
had written by then, since what is damaged or added among these would else become a part of the result. One of
an evaluation of several checkpoints is the finished evaluation of one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from transformers import TrainerCallback

from utils.frame.files import UserError, read_json, remove, sha256_of, write_json
from utils.frame.manifest import RESUME
from utils.frame.processes import is_main_process, wait_for_everyone

SEAL = "hashes.json"  # path -> sha256 of every other file of a resume point; the last to be written
DAMAGED = "damaged-"  # before the name of a resume point that is set aside
OUTPUTS = "outputs"  # within a resume point: what the stage had written by then
LOGS = ("rollouts", "curriculum")  # folders in resume/ with a file for each row of a log
KEPT = 2  # resume points: one to fall back to, should the last be damaged


class SealsResumePoints(TrainerCallback):
    """Complete a resume point of the stage in ``out`` once all processes have written theirs, and only then
    remove old ones. Transformers goes by the clock, which may have been set back or be that of another node.
    """

    def __init__(self, out: Path):
        self.out = out
        self._known: dict[tuple[int, int, int], str] = {}  # a file as it was when it was hashed -> hash

    def on_save(self, args, state, control, **kwargs):
        wait_for_everyone()
        if is_main_process():
            point = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            for folder in written(self.out):
                target = point / OUTPUTS / folder.relative_to(self.out)
                shutil.copytree(folder, target, copy_function=_link)
            seal(point, self._known)
            for old in _latest_first(point.parent)[KEPT:]:
                remove(old)


def written(out: Path) -> list[Path]:
    """The folders of a stage with files that it writes once and never changes: checkpoints, samples, and
    below ``resume/`` the rows of its logs.
    """
    rows = [path for path in out.glob("resume/*") if path.name in LOGS]
    return sorted(path for path in (*out.glob("ckpt_*"), *out.glob("valid_samples"), *rows) if path.is_dir())


def restore(point: Path | None, out: Path) -> None:
    """Let what a stage has written be what a resume point holds, or nothing without one."""
    for folder in written(out):
        remove(folder)
    for folder in written(point / OUTPUTS) if point else ():
        shutil.copytree(folder, out / folder.relative_to(point / OUTPUTS), copy_function=_link)


def _link(source: str, target: str) -> None:
    """A second name for a file, which takes no room; a copy where the file system has no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def keep(folder: Path, point: Path) -> None:
    """Let a folder that is finished be a resume point, without those of its own."""
    remove(point)
    shutil.copytree(folder, point, copy_function=_link, ignore=shutil.ignore_patterns(RESUME))
    seal(point)


def bring_back(point: Path, folder: Path, warn: Callable[[str], None]) -> bool:
    """Undo `keep`; returns whether there was such a resume point, and it `is_whole`."""
    if not is_whole(point, warn):
        return False
    remove(folder)
    shutil.copytree(point, folder, copy_function=_link, ignore=shutil.ignore_patterns(SEAL))
    return True


def seal(point: Path, known: dict[tuple[int, int, int], str] | None = None) -> None:
    """Write a resume point's hashes, which makes it complete. ``known`` are those of files that have not
    changed since: an earlier resume point of this process had them too.
    """
    known, hashes = {} if known is None else known, {}
    for name, path in _files(point).items():
        facts = path.stat()
        key = (facts.st_ino, facts.st_size, facts.st_mtime_ns)
        hashes[name] = known[key] = known.get(key) or sha256_of(path)
    write_json(point / SEAL, hashes)


def resume_point(folder: Path, warn: Callable[[str], None]) -> Path | None:
    """The latest resume point below ``folder`` that `is_whole`, or None: training goes on from the one before
    a damaged one, or begins anew, and ends in the bytes of an undisturbed one all the same.
    """
    return next((point for point in _latest_first(folder) if is_whole(point, warn)), None)


def _latest_first(folder: Path) -> list[Path]:
    """The resume points below a folder, by their steps."""
    return sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]), reverse=True)


def is_whole(point: Path, warn: Callable[[str], None]) -> bool:
    """Whether there is such a resume point, and its files are those that were written.

    One without a seal was cut off while it was written, and is removed. One whose files do not match it is
    set aside as damaged-NAME, with a warning that names the first file.
    """
    if not (point / SEAL).is_file():
        remove(point)
        return False
    if damage := damage_of(point):
        aside = point.with_name(DAMAGED + point.name)
        remove(aside)
        os.replace(point, aside)
        warn(f"resume point {point.name}: {damage}; set aside as {aside.name}")
        return False
    return True


def damage_of(point: Path) -> str:
    """What is wrong with a sealed resume point, naming a file; "" where its files are as they were sealed."""
    try:
        expected = read_json(point / SEAL)
        found = _files(point)
        if wrong := sorted(expected.keys() ^ found.keys()):
            return f"{wrong[0]} {'is missing' if wrong[0] in expected else 'was not part of it'}"
        return next(
            (f"{name} has changed" for name, path in found.items() if sha256_of(path) != expected[name]), ""
        )
    except (UserError, OSError, AttributeError) as error:
        return f"{SEAL} cannot be read ({type(error).__name__})"


def _files(point: Path) -> dict[str, Path]:
    """Every file of a resume point but its seal, by its path within."""
    paths = sorted(path for path in point.rglob("*") if path.is_file() or path.is_symlink())
    return {path.relative_to(point).as_posix(): path for path in paths if path != point / SEAL}
