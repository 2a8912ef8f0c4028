"""Submit a whole run of 12_driver.py to SLURM: a job for each step, or an array over seeds.

python slurm/submit.py --method ppo --run_id ppo_gsm8k --dataset_config configs/datasets/gsm8k.yaml
python slurm/submit.py --method grpo --accelerate_config configs/accelerate/ddp.yaml --num_processes 8
python slurm/submit.py --array --method all --seeds 0 1 2
"""

import argparse
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from slurm import lib_jobs as jobs  # noqa: E402
from slurm.lib_cluster import DRIVER, Cluster, read_cluster  # noqa: E402
from utils.driver.goal import listed  # noqa: E402
from utils.frame.credentials import redact  # noqa: E402
from utils.frame.files import UserError, read_json  # noqa: E402

EPILOG = """\
every other option is 12_driver.py's. A job starts once those that it needs have succeeded; the last one
compares what there is once all have ended. Jobs that are near their time limit go back into the queue and
resume. The same command again goes on: steps that are up to date end at once.

reads    slurm/cluster.local.yaml, else slurm/cluster.yaml; SBATCH_… and BELLMAN_CONTAINER of the environment
writes   outputs/slurm/<run_id>/: jobs.json, and a log for each job
exit     0 submitted; 2 a mistake in the command, its files or settings, or SLURM refused
"""


@dataclass(frozen=True)
class Job:
    """A job to be submitted: a step of the plan, or an array of runs."""

    name: str
    folder: str
    argv: list[str]
    needs: list[str]
    after: str  # afterok, afterany
    array: str = ""


def build_parser() -> argparse.ArgumentParser:
    """The own options, and those of the driver that are read here and passed on."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--cluster", metavar="FILE", help="the cluster's settings (YAML)")
    parser.add_argument(
        "--array", action="store_true", help="a job for each of --seeds, which does all its steps"
    )
    parser.add_argument("--dry_run", action="store_true", help="show sbatch's commands, and submit nothing")
    parser.add_argument("--run_id", default="run_001", help="name of the run (default: run_001)")
    parser.add_argument("--outputs_root", help="folder that holds the runs (default: outputs)")
    parser.add_argument("--seeds", nargs="+", default=[], metavar="S", help="a run for each seed")
    return parser


def plan(argv: list[str]) -> list[dict]:
    """The steps of the driver's command line. Raises UserError with the driver's own line."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.json"
        done = subprocess.run(
            [sys.executable, str(ROOT / "12_driver.py"), *argv, "--export_plan", str(path)],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["12_driver.py failed"]
            raise UserError(lines[-1].removeprefix("error: "))
        return read_json(path)


def jobs_of_steps(steps: list[dict]) -> list[Job]:
    """A job for each step; the driver's comparison comes last, once all has ended."""
    return [
        Job(step["name"], folder_written(step), step["argv"], step["needs"], f"after{step['after']}")
        for step in steps
    ]


def folder_written(step: dict) -> str:
    """The folder below the run's that a step writes; the driver's own for the comparison."""
    return DRIVER if "--compare_only" in step["argv"] else step["name"].split("/")[1]


def jobs_of_seeds(steps: list[dict], run_id: str, seeds: list[str], argv: list[str]) -> list[Job]:
    """An array whose tasks are the seeds' runs, each by the driver, and the comparison over them."""
    *_, compare = steps
    script = next(word for word in compare["argv"] if word.endswith(".py"))
    runs = Job(
        f"{run_id}/{DRIVER}", DRIVER, ["python", script, *argv, "--seeds", "%a"], [], "", ",".join(seeds)
    )
    return [runs, Job(compare["name"], DRIVER, compare["argv"], [runs.name], "afterany")]


def commands(found: list[Job], cluster: Cluster, logs: Path) -> list[list[str]]:
    """sbatch's words for each job, without its dependency. Raises UserError for what cannot be."""
    several = []
    for job in found:
        launched = job.argv[0] == "accelerate"
        if launched:
            check_tasks(job, cluster)
        name = job.name.removeprefix(f"{logs.name}/").replace("/", "_")
        log = logs / f"{name}{'-%A_%a' if job.array else '-%j'}.log"
        words = [f"--job-name={job.name}", f"--output={log}", f"--chdir={Path.cwd()}"]
        words += [f"--array={job.array}"] if job.array else []
        several.append([*words, *cluster.options(job.folder, launched), "--", *job.argv])
    return several


def check_tasks(job: Job, cluster: Cluster) -> None:
    """The processes of a step are as many in each of its tasks."""
    tasks, processes = cluster.tasks(job.folder), int(job.argv[job.argv.index("--num_processes") + 1])
    if processes % tasks:
        raise UserError(
            f"{job.name}: {processes} processes (--num_processes) do not divide into {tasks} tasks (nodes x "
            "tasks_per_node of the cluster's settings)"
        )


def submit(
    found: list[Job], several: list[list[str]], cluster: Cluster, folder: Path
) -> list[jobs.Submitted]:
    """Submit all or none: the first jobs are held until the last is known to SLURM."""
    submitted: dict[str, jobs.Submitted] = {}
    held = []
    try:
        for job, words in zip(found, several, strict=True):
            needs = ":".join(str(submitted[need].job) for need in job.needs)
            first = (
                [f"--dependency={job.after}:{needs}", "--kill-on-invalid-dep=yes"] if needs else ["--hold"]
            )
            number = jobs.sbatch([*first, *words], cluster.environment())
            held += [] if needs else [number]
            log = next(word.partition("=")[2] for word in words if word.startswith("--output="))
            submitted[job.name] = jobs.Submitted(job.name, number, log)
        jobs.write_record(folder, list(submitted.values()))
        jobs.release(held)
    except BaseException:
        jobs.cancel([job.job for job in submitted.values()])
        raise
    return list(submitted.values())


def check_idle(folder: Path) -> None:
    """Refuse a second submission while jobs of the first are in the queue: both would write one folder."""
    if not (folder / jobs.RECORD).exists():
        return
    for job in jobs.read_record(folder):
        if any(state.state not in jobs.ENDED | {jobs.UNKNOWN} for state in jobs.states(job.job)):
            raise UserError(
                f"{job.name} is still in the queue as job {job.job}: wait for it (slurm/check_jobs.py), end "
                "it with scancel, or choose another --run_id"
            )


def main(argv: list[str]) -> int:
    """Submit; returns the exit code."""
    known, rest = build_parser().parse_known_args(argv)
    driver = [
        "--run_id",
        known.run_id,
        *(["--outputs_root", known.outputs_root] if known.outputs_root else []),
        *rest,
    ]
    seeds = listed(known.seeds)
    try:
        if known.array and not seeds:
            raise UserError("--array is over seeds: give --seeds")
        cluster = read_cluster(known.cluster)
        steps = plan([*driver, *(["--seeds", *seeds] if seeds else [])])
        found = jobs_of_seeds(steps, known.run_id, seeds, driver) if known.array else jobs_of_steps(steps)
        folder = jobs.folder_of(known.outputs_root, known.run_id)
        several = commands(found, cluster, folder)
        if known.dry_run:
            for job, words in zip(found, several, strict=True):
                after = f" after {', '.join(job.needs)}" if job.needs else ""
                print(f"# {job.name}{after}\nsbatch {shlex.join(words)}")
            return 0
        check_idle(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for job in submit(found, several, cluster, folder):
            print(f"{job.job}  {job.name}")
    except UserError as error:
        print(f"error: {redact(str(error))}", file=sys.stderr)
        return 2
    print(f"{len(found)} jobs; slurm/check_jobs.py --run_id {known.run_id} follows them")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
