"""slurm/ on a real cluster of one node: dependencies, arrays, failures, time limits, requeues."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from slurm import lib_jobs as jobs
from tests.support import slurm_cluster
from tests.support.slurm_cluster import run
from utils.frame.files import REPO_ROOT, read_json

TOKEN = "hf_PlantedForTheTestOfSlurm0123456789"
QUICK = ["--method", "sft", "--quick_test"]
TINY = ["--sft.training.save_steps", "1", "--sft.max_steps", "4", "--evaluate.max_items", "4"]
TINY += ["--evaluate.teacher_metrics", "false", "--evaluate.reference_metrics", "false"]
TWO = ["--accelerate_config", "configs/accelerate/ddp.yaml", "--num_processes", "2"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The environment of a real cluster of one node, with a token in it."""
    if reason := slurm_cluster.why_not():
        pytest.skip(reason)
    with slurm_cluster.slurm_cluster() as env:
        yield {**env, "HF_TOKEN": TOKEN, "OMP_NUM_THREADS": "1"}


def settings(folder: Path, text: str) -> str:
    """A file of settings; returns its path."""
    (folder / "cluster.yaml").write_text(text)
    return str(folder / "cluster.yaml")


def call(env: dict[str, str], *command: str) -> str:
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout


def wait_for(what, seconds: float = 900):
    """The first true value of ``what()``."""
    end = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < end, "nothing came"
        time.sleep(0.1)
    return value


def values(env: dict[str, str], job: int | str) -> dict[str, str]:
    """What SLURM says of a job (or a task of an array)."""
    words = call(env, "scontrol", "show", "job", "-o", str(job)).split()
    return dict(word.split("=", 1) for word in words if "=" in word)


def wait_for_job(env: dict[str, str], job: int, what):
    """The first true value of ``what()``, which the job brings about before it ends."""

    def come():
        found, state = what(), values(env, job)["JobState"]
        assert found or state not in jobs.ENDED, f"job {job} is {state} already"
        return found

    return wait_for(come)


def ended(env: dict[str, str], job: int | str) -> dict[str, str]:
    """The same, once the job has ended."""
    return wait_for(lambda: (found := values(env, job))["JobState"] in jobs.ENDED and found)


def job(env: dict[str, str], folder: Path, *words: str, **more: str) -> int:
    """Submit job.sbatch by hand, as its head says; returns its id."""
    options = ["--parsable", f"--output={folder}/%j.log", "--time=5", f"--chdir={REPO_ROOT}"]
    command = ["sbatch", *options, str(REPO_ROOT / "slurm" / "job.sbatch"), *words]
    return int(call({**env, "BELLMAN_ROOT": str(REPO_ROOT), **more}, *command))


POLITE = """
import pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
if (folder / "stopped").exists():
    sys.exit(int(sys.argv[2]))
def stop(number, frame):
    (folder / "stopped").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
(folder / "begun").touch()
time.sleep(300)
"""


def test_near_its_time_limit_a_job_ends_its_command_and_starts_again_under_its_id(cluster, tmp_path):
    """SLURM's signal, sent by hand. The command ends as asked (SIGTERM); its last exit code is the job's."""
    number = job(cluster, tmp_path, "python", "-c", POLITE, str(tmp_path), "3")
    wait_for_job(cluster, number, (tmp_path / "begun").exists)
    call(cluster, "scancel", "--signal=USR1", "--batch", str(number))
    found = ended(cluster, number)
    assert (found["JobState"], found["Restarts"], found["ExitCode"]) == ("FAILED", "1", "3:0")
    assert (tmp_path / "stopped").exists()
    log = (tmp_path / f"{number}.log").read_text()
    assert "the time limit is near" in log and "start 2" in log and "did not end" not in log


def test_a_job_is_not_requeued_for_ever(cluster, tmp_path):
    number = job(cluster, tmp_path, "python", "-c", POLITE, str(tmp_path), "0", BELLMAN_MAX_REQUEUES="0")
    wait_for_job(cluster, number, (tmp_path / "begun").exists)
    call(cluster, "scancel", "--signal=USR1", "--batch", str(number))
    assert ended(cluster, number)["JobState"] == "FAILED"
    assert "has been requeued 0 times (BELLMAN_MAX_REQUEUES)" in (tmp_path / f"{number}.log").read_text()


def submitted(tmp_path: Path, env: dict[str, str], *words: str) -> dict[str, int]:
    """Submit a run r; returns the job of each step."""
    done = run("submit.py", "--run_id", "r", "--outputs_root", str(tmp_path), *words, **env)
    assert done.returncode == 0, done.stderr
    record = {job.name: job.job for job in jobs.read_record(tmp_path / "slurm" / "r")}
    assert done.stdout.splitlines()[:-1] == [f"{number}  {name}" for name, number in record.items()]
    return record


def checked(tmp_path: Path, env: dict[str, str]) -> tuple[int, str]:
    done = run("check_jobs.py", "--run_id", "r", "--outputs_root", str(tmp_path), **env)
    return done.returncode, done.stdout + done.stderr


NO_DATA = [
    "--method",
    "sft",
    "--dataset_config",
    "configs/datasets/gsm8k.yaml",
    "--dataset.data_root",
    "nowhere",
]


def test_a_failure_takes_down_what_rests_on_it_and_is_told(cluster, tmp_path):
    found = submitted(tmp_path, cluster, *NO_DATA)
    assert ended(cluster, found["r/11_comparison"])["JobState"] == "FAILED"  # it had nothing to compare
    states = {name: values(cluster, number)["JobState"] for name, number in found.items()}
    assert states.pop("r/00_data_validation") == states.pop("r/11_comparison") == "FAILED"
    assert set(states.values()) == {"CANCELLED"}
    code, table = checked(tmp_path, cluster)
    assert code == 1 and "missing input nowhere/train.jsonl" in table


def test_an_array_has_a_task_for_each_seed_and_then_the_comparison(cluster, tmp_path):
    found = submitted(tmp_path, cluster, *NO_DATA, "--array", "--seeds", "4", "11")
    assert ended(cluster, found["r/11_comparison"])["JobState"] == "FAILED"
    for seed in ("4", "11"):
        log = (tmp_path / "slurm" / "r" / f"12_driver-{found['r/12_driver']}_{seed}.log").read_text()
        assert "sft failed: 00_data_validation: missing input" in log and "exit code 2" in log
    code, table = checked(tmp_path, cluster)
    assert code == 1 and "r/12_driver seed 4 " in table and "r/12_driver seed 11" in table


def test_a_second_submission_waits_for_the_first_and_a_refused_one_leaves_nothing(cluster, tmp_path):
    path = settings(tmp_path, 'extra: ["--begin=now+1hour"]')
    found = submitted(tmp_path, cluster, *NO_DATA, "--cluster", path)
    first = found["r/00_data_validation"]
    assert checked(tmp_path, cluster)[0] == 3
    again = ["submit.py", "--run_id", "r", "--outputs_root", str(tmp_path), *NO_DATA]
    done = run(*again, **cluster)
    assert (
        done.returncode == 2 and f"r/00_data_validation is still in the queue as job {first}" in done.stderr
    )
    call(cluster, "scancel", *map(str, found.values()))
    wait_for(lambda: not call(cluster, "squeue", "--noheader"))
    # The second job asks for what there is not: the first, held until then, is taken back.
    path = settings(tmp_path, "steps: {01_preprocessing: {partition: none_such}}")
    done = run(*again, "--cluster", path, **cluster)
    assert done.returncode == 2 and "error: sbatch: " in done.stderr and "partition" in done.stderr
    assert not call(cluster, "squeue", "--noheader")


def stage_processes(script: str, folder: Path) -> list[int]:
    """The processes of a stage that Accelerate has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode().split("\0")
        except OSError:  # it has just ended
            continue
        if str(folder) in words and words[1:3] == ["-u", script]:
            found.append(int(path.parent.name))
    return found


def test_two_tasks_are_killed_at_the_time_limit_and_resume_and_what_rests_on_them_waits(cluster, tmp_path):
    """The quick pipeline in two tasks; training hangs after its first resume point until its time is up."""
    path = settings(tmp_path, 'time: "30"\ntasks_per_node: 2\nsignal_seconds: 10')
    words = ["--cluster", path, *QUICK, *TINY, *TWO, "--seeds", "0"]
    found = submitted(tmp_path, cluster, *words)
    made, training = tmp_path / "r_seed_0", found["r_seed_0/03_sft"]
    assert values(cluster, training)["NumTasks"] == "2" and values(cluster, training - 1)["NumTasks"] == "1"

    resume_points = "03_sft/resume/checkpoint-*/trainer_state.json"
    wait_for_job(cluster, training, lambda: list(made.glob(resume_points)))
    hung = stage_processes("03_sft_train.py", tmp_path)
    for process in hung:
        os.kill(process, signal.SIGSTOP)
    assert len(hung) == 2
    hours, minutes, seconds = map(int, values(cluster, training)["RunTime"].split(":"))
    # In whole minutes, and SLURM looks at limits every 30 seconds.
    limit = 60 * hours + minutes + (2 if seconds > 20 else 1)
    call(cluster, "scontrol", "update", f"JobId={training}", f"TimeLimit={limit}")
    wait_for(lambda: values(cluster, training)["Restarts"] == "1")
    call(cluster, "scontrol", "update", f"JobId={training}", "TimeLimit=30")
    wait_for(lambda: values(cluster, training)["JobState"] == "RUNNING")
    assert not [process for process in hung if Path(f"/proc/{process}").exists()]
    assert values(cluster, found["r_seed_0/10_evaluation/sft"])["JobState"] == "PENDING"
    assert not (made / "03_sft" / "manifest.json").exists()

    assert ended(cluster, found["r_seed_0/11_comparison"])["JobState"] == "COMPLETED"
    assert {values(cluster, number)["JobState"] for number in found.values()} == {"COMPLETED"}
    log = (tmp_path / "slurm" / "r" / f"r_seed_0_03_sft-{training}.log").read_text()
    assert "the time limit is near" in log and "did not end within 5 s" in log and "resuming from step" in log
    assert len(read_json(made / "03_sft" / "runtime.json")["sessions"]) == 2
    for stage, processes in (("01_preprocessing", 1), ("03_sft", 2), ("10_evaluation/sft", 2)):
        assert read_json(made / stage / "manifest.json")["environment"]["num_processes"] == processes
    assert (made / "11_comparison" / "report.html").exists()
    code, table = checked(tmp_path, cluster)
    row = next(line for line in table.splitlines() if line.startswith("r_seed_0/03_sft "))
    assert code == 0 and row.split()[2:4] == ["COMPLETED", "1"]
    assert (
        "r_seed_0/03_sft: done, 2 starts"
        in run("progress.py", "--run_id", "r", "--outputs_root", str(tmp_path)).stdout
    )

    # The same run as an array finds all of it done.
    array = submitted(tmp_path, cluster, *words, "--array")
    assert ended(cluster, array["r_seed_0/11_comparison"])["JobState"] == "COMPLETED"
    log = (tmp_path / "slurm" / "r" / f"12_driver-{array['r/12_driver']}_0.log").read_text()
    assert log.count(": up to date") == 7 and "done in" not in log

    told = call(cluster, "scontrol", "show", "job") + "".join(
        each.read_text(errors="replace")
        for each in tmp_path.rglob("*")
        if each.is_file() and each.suffix != ".png"
    )
    assert "r_seed_0" in told and TOKEN not in told
