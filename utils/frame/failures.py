"""What failed in a run and why: ``failed.json``, which the driver writes and the comparison reads."""

import contextlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from utils.frame.credentials import redact
from utils.frame.files import UserError, dump_json, read_json, remove, shown, write_text

FAILED = "failed.json"


@dataclass(frozen=True)
class Failure:
    """Why a policy ("": every one of its run) cannot be compared: the stage that failed, and the reason, one
    line that begins with the stage's folder. ``run`` is "" unless several runs are compared.
    """

    policy: str
    stage: str
    reason: str
    run: str = ""

    @property
    def name(self) -> str:
        """What failed, as reports call it: "dpo", "seed_1/dpo" or "seed_1"."""
        return "/".join(filter(None, (self.run, self.policy)))


def write_failures(run_dir: Path, failures: Sequence[Failure]) -> bool:
    """Write ``failed.json``, with access tokens blotted out, or remove it where nothing failed.

    Returns whether that changes it.
    """
    path = run_dir / FAILED
    text = redact(dump_json([asdict(each) for each in failures])) if failures else ""
    if text == (path.read_text(encoding="utf-8") if path.is_file() else ""):
        return False
    if text:
        write_text(path, text)
    else:
        remove(path)
    return True


def read_failures(run_dir: Path) -> list[Failure]:
    """What is noted of a run, [] where nothing failed. Raises UserError where the file is damaged."""
    path = run_dir / FAILED
    try:
        return [Failure(**each) for each in read_json(path)] if path.is_file() else []
    except TypeError:
        raise UserError(f"{shown(path)}: not as the driver writes it; delete it") from None


def forget_failures(run_dir: Path, stage: str) -> None:
    """Strike out what a stage of the run took down, now that it has finished."""
    with contextlib.suppress(UserError):
        write_failures(run_dir, [each for each in read_failures(run_dir) if each.stage != stage or each.run])
