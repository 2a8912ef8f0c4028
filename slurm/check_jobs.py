"""What became of the jobs that slurm/submit.py submitted for a run: state, restarts, and why one failed.

python slurm/check_jobs.py --run_id run_001
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from slurm import lib_jobs as jobs  # noqa: E402
from utils.frame.credentials import redact  # noqa: E402
from utils.frame.files import UserError, shown  # noqa: E402

EPILOG = """\
reads    outputs/slurm/<run_id>/jobs.json, scontrol, and sacct for jobs that the controller has forgotten
exit     0 all succeeded; 1 one failed or was cancelled; 3 some still wait or run; 2 a mistake in the command
"""


def rows(submitted: list[jobs.Submitted]) -> list[tuple[str, str, jobs.State, str]]:
    """(step, job, state, log) of every job, of each task of an array."""
    found = []
    for job in submitted:
        for state in jobs.states(job.job):
            task = "" if state.task is None else f"_{state.task}"
            log = job.log.replace("%j", str(job.job)).replace("%A", str(job.job)).replace("%a", task[1:])
            found.append((job.name + task.replace("_", " seed "), f"{job.job}{task}", state, log))
    return found


def last_error(log: str) -> str:
    """The last line of a log that tells of an error, "" where none does."""
    path = Path(log)
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    told = [line for line in lines if line.startswith("error: ") or "Error: " in line]
    return told[-1].removeprefix("error: ")[:300] if told else ""


def table(found: list[tuple[str, str, jobs.State, str]]) -> list[str]:
    """Lines of equal columns: step, job, state, restarts, time, and why."""
    lines = [("step", "job", "state", "restarts", "time", "why")]
    for name, number, state, log in found:
        why = state.reason
        if state.state in jobs.ENDED - {"COMPLETED"}:
            log_named = f" (see {shown(log)})" if Path(log).exists() else ""
            why = f"{last_error(log) or state.reason}{log_named}"
        restarts = "" if state.restarts is None else str(state.restarts)
        lines.append((name, number, state.state, restarts, state.time, why))
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    return [
        "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[5]]).rstrip()
        for line in lines
    ]


def exit_code(states: list[str]) -> int:
    """0 all succeeded, 1 one failed, 3 not all have ended. A job that SLURM has forgotten has ended."""
    if any(state in jobs.ENDED - {"COMPLETED"} for state in states):
        return 1
    return 0 if all(state in ("COMPLETED", jobs.UNKNOWN) for state in states) else 3


def main(argv: list[str]) -> int:
    """Show the table; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run_id", default="run_001", help="as given to submit.py (default: run_001)")
    parser.add_argument("--outputs_root", help="folder that holds the runs (default: outputs)")
    known = parser.parse_args(argv)
    try:
        found = rows(jobs.read_record(jobs.folder_of(known.outputs_root, known.run_id)))
    except UserError as error:
        print(f"error: {redact(str(error))}", file=sys.stderr)
        return 2
    print("\n".join(table(found)))
    if any(state.state == jobs.UNKNOWN for _, _, state, _ in found):
        print(f"{jobs.UNKNOWN}: SLURM has forgotten the job; slurm/progress.py tells what it left")
    return exit_code([state.state for _, _, state, _ in found])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
