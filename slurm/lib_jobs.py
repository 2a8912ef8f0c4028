"""Submitting jobs to SLURM, and asking it what became of them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from utils.frame.files import REPO_ROOT, UserError, dump_json, read_json, resolve_path, shown, write_text

RECORD = "jobs.json"
# States of a job that will not change again; all others are on their way.
ENDED = {
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "BOOT_FAIL",
    "DEADLINE",
    "PREEMPTED",
}
UNKNOWN = "UNKNOWN"


@dataclass(frozen=True)
class Submitted:
    """A job as it was submitted: the step's name ("run_001/03_sft"), its id, and its log's pattern."""

    name: str
    job: int
    log: str


@dataclass(frozen=True)
class State:
    """What SLURM says of a job or a task of an array.

    Attributes:
        task: of an array, None elsewhere.
        state: SLURM's word, UNKNOWN where it has forgotten the job.
        reason: why it waits.
        restarts: how often it was requeued; None where SLURM does not say.
        time: how long it has run since its last start, as SLURM writes it.
    """

    task: int | None
    state: str
    reason: str = ""
    restarts: int | None = None
    time: str = ""


def folder_of(outputs_root: str | None, run_id: str) -> Path:
    """Where a submission's record and the logs of its jobs are."""
    return resolve_path(outputs_root or "outputs") / "slurm" / run_id


def sbatch(words: Sequence[str], environment: Mapping[str, str]) -> int:
    """Submit slurm/job.sbatch; returns the job's id.

    Args:
        words: sbatch's options and the command: [*options, "--", *command].
        environment: what is set beside the present environment, all of which the job gets.

    Raises:
        UserError: with sbatch's own last line where it refuses.
    """
    split = list(words).index("--")
    command = [
        "sbatch",
        "--parsable",
        "--export=ALL",
        *words[:split],
        str(REPO_ROOT / "slurm" / "job.sbatch"),
        *words[split + 1 :],
    ]
    output = _ask(command, env={**os.environ, **environment})
    return int(output.strip().splitlines()[-1].split(";")[0])


def write_record(folder: Path, jobs: Sequence[Submitted]) -> None:
    """Note what was submitted, for check_jobs."""
    write_text(folder / RECORD, dump_json([asdict(job) for job in jobs]))


def read_record(folder: Path) -> list[Submitted]:
    """What was submitted last. Raises UserError where nothing was."""
    if not (folder / RECORD).exists():
        raise UserError(
            f"{shown(folder)}: nothing was submitted under this --run_id; see slurm/submit.py --help"
        )
    return [Submitted(**job) for job in read_json(folder / RECORD)]


def states(job: int) -> list[State]:
    """The states of a job, one for each task of an array. Raises UserError where SLURM does not answer."""
    done = _run(["scontrol", "show", "job", "-o", str(job)])
    if done.returncode == 0 and "JobId=" in done.stdout:
        found = [_state(line) for line in done.stdout.splitlines() if line.startswith("JobId=")]
        return sorted(found, key=lambda state: -1 if state.task is None else state.task)
    if "Invalid job id" not in done.stdout + done.stderr:
        raise UserError(f"scontrol: {_last_line(done)}")
    return _states_in_accounting(job) or [State(None, UNKNOWN)]


def _state(line: str) -> State:
    """One line of ``scontrol show job -o``. A task id such as 0-2 is of tasks that have not begun."""
    values = dict(re.findall(r"(\w+)=(\S*)", line))
    task = values.get("ArrayTaskId", "")
    reason = values.get("Reason", "None")
    return State(
        int(task) if task.isdigit() else None,
        values["JobState"],
        "" if reason == "None" else reason,
        int(values.get("Restarts", 0)),
        values.get("RunTime", ""),
    )


def _states_in_accounting(job: int) -> list[State]:
    """What sacct knows of a job that the controller has forgotten; [] where there is no accounting."""
    if not shutil.which("sacct"):
        return []
    columns = "--format=JobID,State,Elapsed"
    done = subprocess.run(
        ["sacct", "--jobs", str(job), "--allocations", "--noheader", "--parsable2", columns],
        capture_output=True,
        text=True,
    )
    found = []
    for line in done.stdout.splitlines() if done.returncode == 0 else ():
        name, state, elapsed = line.split("|")
        task = name.partition("_")[2]
        found.append(State(int(task) if task.isdigit() else None, state.split()[0], time=elapsed))
    return found


def _run(command: Sequence[str], env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess:
    try:
        return subprocess.run(command, capture_output=True, text=True, env=env)
    except FileNotFoundError:
        raise UserError(f"{command[0]} is not here: run this on a login node of the cluster") from None


def _ask(command: Sequence[str], env: Mapping[str, str] | None = None) -> str:
    done = _run(command, env)
    if done.returncode:
        raise UserError(f"{command[0]}: {_last_line(done)}")
    return done.stdout


def _last_line(done: subprocess.CompletedProcess) -> str:
    lines = (done.stderr or done.stdout).strip().splitlines()
    return lines[-1] if lines else f"exit code {done.returncode}"


def release(jobs: Sequence[int]) -> None:
    """Let held jobs start."""
    _ask(["scontrol", "release", ",".join(map(str, jobs))])


def cancel(jobs: Sequence[int]) -> None:
    """End jobs, whatever their state."""
    if jobs:
        subprocess.run(["scancel", *map(str, jobs)], capture_output=True)
