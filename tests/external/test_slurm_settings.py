"""slurm/: what is asked of a cluster, what a task runs, what is told of jobs and runs."""

import os
import stat
import subprocess
from pathlib import Path

import pytest

from slurm import lib_jobs as jobs
from slurm.lib_cluster import read_cluster, seconds_of
from slurm.lib_progress import progress_of_run
from tests.support.slurm_cluster import run
from utils.frame.files import REPO_ROOT, UserError, write_json


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """Write a cluster's file; returns its path."""
    for name in [name for name in os.environ if name.startswith(("SBATCH_", "BELLMAN_"))]:
        monkeypatch.delenv(name)

    def write(text: str) -> str:
        (tmp_path / "cluster.yaml").write_text(text)
        return str(tmp_path / "cluster.yaml")

    return write


def script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


# ------------------------------------------------------------------------------------- what is asked for


def test_options_of_a_step_are_its_own_then_the_general_and_the_environment_wins(settings, monkeypatch):
    cluster = read_cluster(
        settings(
            """
            account: lab
            partition: gpu
            time: "12:00:00"
            nodes: 2
            gpus_per_node: a100:4
            cpus_per_task: 8
            signal_seconds: 60
            extra: ["--mail-type=FAIL"]
            steps:
              05_ppo: {time: "2-00:00:00"}
              08_preferences: {gpus_per_node: 0, partition: cpu}
            """
        )
    )
    last = ["--cpus-per-task=8", "--signal=B:USR1@60", "--mail-type=FAIL"]
    assert cluster.options("05_ppo_task", launched=True) == [
        "--nodes=2",
        "--ntasks-per-node=1",
        "--account=lab",
        "--partition=gpu",
        "--time=2-00:00:00",
        "--gpus-per-node=a100:4",
        *last,
    ]
    monkeypatch.setenv("SBATCH_ACCOUNT", "other")
    monkeypatch.setenv("SBATCH_TIMELIMIT", "10")
    assert cluster.options("08_preferences", launched=False) == [
        "--nodes=1",
        "--ntasks-per-node=1",
        "--partition=cpu",
        *last,
    ]


def test_shipped_settings_name_no_cluster(settings):
    cluster = read_cluster(str(REPO_ROOT / "slurm" / "cluster.yaml"))
    for folder in ("01_preprocessing", "06_grpo_task", "12_driver"):
        assert cluster.options(folder, True) == ["--nodes=1", "--ntasks-per-node=1", "--signal=B:USR1@120"]
    assert set(cluster.environment()) == {"BELLMAN_ROOT", "BELLMAN_MAX_REQUEUES", "BELLMAN_PATIENCE"}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 5400), ("1:30", 90), ("12:00:00", 43200), ("2-0", 172800), ("1-00:01:02", 86462)],
)
def test_time_limits_are_read_as_slurm_reads_them(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("acount: lab", 'unknown key "acount"; did you mean "account"?'),
        ("time: 12:00:00", 'key "time" must be str or null, found 43200'),
        ("time: soon", "time must be as SLURM writes it"),
        ("steps: {05_pp: {nodes: 1}}", "steps: no step writes 05_pp"),
        ("nodes: 0", "nodes must be at least 1"),
        ("tasks_per_node: 2\ngpus_per_node: 2", "one task drives all GPUs of its node"),
        ("container: nowhere.sif", "nowhere.sif: no such file"),
        ("signal_seconds: 1", "signal_seconds must be from 10"),
    ],
)
def test_mistakes_in_the_settings(settings, text, says):
    with pytest.raises(UserError) as error:
        read_cluster(settings(text))
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_time_limit_that_leaves_no_time_is_refused(settings):
    cluster = read_cluster(settings('time: "2"\nsignal_seconds: 120'))
    with pytest.raises(UserError, match="time 2 of 03_sft is not above signal_seconds"):
        cluster.options("03_sft", launched=False)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--array"], "error: --array is over seeds: give --seeds\n"),
        (["--methd", "ppo"], "error: unknown option --methd"),
        (
            ["--accelerate_config", "configs/accelerate/ddp.yaml", "--num_processes", "3"],
            "error: run_001/03_sft: 3 processes (--num_processes) do not divide into 2 tasks",
        ),
        (["--method", "sft"], "error: sbatch is not here: run this on a login node of the cluster\n"),
    ],
)
def test_mistakes_in_the_command(settings, tmp_path, words, says):
    path = settings("nodes: 2")
    done = run(
        "submit.py", "--cluster", path, "--outputs_root", str(tmp_path / "o"), *words, PATH=str(tmp_path)
    )
    assert done.returncode == 2 and says in done.stderr and done.stderr.count("\n") == 1


def test_without_slurm_the_jobs_of_a_run_cannot_be_checked(tmp_path):
    jobs.write_record(tmp_path / "slurm" / "r", [jobs.Submitted("r/03_sft", 1, "r.log")])
    done = run("check_jobs.py", "--run_id", "r", "--outputs_root", str(tmp_path), PATH=str(tmp_path))
    says = "error: scontrol is not here: run this on a login node of the cluster\n"
    assert (done.returncode, done.stderr) == (2, says)


# ------------------------------------------------------------------------------------- what a task runs


@pytest.fixture
def task(tmp_path):
    """Run task.sh in a project with stubs that show their command line and threads."""
    root = tmp_path / "project"
    programs = root / ".venv" / "bin"
    programs.mkdir(parents=True)
    (root / ".venv" / ".setup-complete").touch()
    for name in ("accelerate", "python", "apptainer"):
        script(programs / name, '#!/bin/bash\necho "$OMP_NUM_THREADS ${0##*/} $*"\n')

    def run(*words: str, **env: str) -> subprocess.CompletedProcess:
        env = {"PATH": f"/usr/bin:/bin:{programs}", "BELLMAN_ROOT": str(root), "SLURM_JOB_ID": "20007"} | env
        command = ["bash", str(REPO_ROOT / "slurm" / "task.sh"), *words]
        return subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path)

    run.root = root
    return run


LAUNCH = [
    "accelerate",
    "launch",
    "--config_file",
    "c.yaml",
    "--num_processes",
    "4",
    "--main_process_port",
    "0",
]


def test_a_task_takes_its_seed_and_its_threads(task):
    done = task("python", "12_driver.py", "--seeds", "%a", SLURM_ARRAY_TASK_ID="7", SLURM_CPUS_PER_TASK="6")
    assert done.stdout == "6 python 12_driver.py --seeds 7\n"
    assert task(*LAUNCH, "x.py", SLURM_CPUS_PER_TASK="8").stdout == f"2 {' '.join(LAUNCH)} x.py\n"


def test_each_of_several_tasks_is_a_machine_for_accelerate(task):
    env = {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1"}
    done = task(*LAUNCH, "x.py", "--num_processes", "%a.py", SLURM_CPUS_PER_TASK="8", **env)
    assert done.stdout == (
        f"4 {' '.join(LAUNCH)} --num_machines 2 --machine_rank 1 --rdzv_backend static "
        "--main_process_ip 10.0.0.1 --main_process_port 20007 x.py --num_processes %a.py\n"
    )


def test_a_container_gets_the_command_and_the_gpus(task):
    env = {"BELLMAN_CONTAINER": "/images/b.sif", "BELLMAN_CONTAINER_OPTIONS": "--bind /scratch"}
    (task.root / ".venv" / ".setup-complete").unlink()
    done = task("python", "x.py", SLURM_JOB_GPUS="0,1", **env)
    root, here = task.root, task.root.parent
    assert done.stdout == (
        f"1 apptainer exec --nv --bind {root} --pwd {here} --bind /scratch /images/b.sif python x.py\n"
    )
    assert " --nv " not in task("python", "x.py", **env).stdout


def test_a_task_without_an_environment_says_so(task):
    (task.root / ".venv" / ".setup-complete").unlink()
    done = task("python", "x.py")
    assert done.returncode == 2 and "run ./setup.sh there first" in done.stderr


# -------------------------------------------------------------------------------------- states, progress


def test_a_job_that_the_controller_has_forgotten_is_asked_of_the_accounting(tmp_path, monkeypatch):
    script(
        tmp_path / "scontrol",
        "#!/bin/bash\necho slurm_load_jobs error: Invalid job id specified >&2; exit 1\n",
    )
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    script(tmp_path / "sacct", "#!/bin/bash\n")
    assert jobs.states(7) == [jobs.State(None, jobs.UNKNOWN)]
    script(
        tmp_path / "sacct", "#!/bin/bash\necho '7_0|COMPLETED|00:01:02'; echo '7_1|CANCELLED by 5|00:00:01'\n"
    )
    assert jobs.states(7) == [
        jobs.State(0, "COMPLETED", time="00:01:02"),
        jobs.State(1, "CANCELLED", time="00:00:01"),
    ]
    script(tmp_path / "scontrol", "#!/bin/bash\necho connection refused >&2; exit 1\n")
    with pytest.raises(UserError, match="scontrol: connection refused"):
        jobs.states(7)


def test_progress_of_a_run(tmp_path):
    made = tmp_path / "run_001"
    for folder, last in (
        ("03_sft", "done in 3 s"),
        ("05_ppo", "step 8/64: val reward 0.1"),
        ("06_grpo", "error: x"),
    ):
        (made / folder).mkdir(parents=True)
        (made / folder / "stage.log").write_text(
            f"2026-01-01T00:00:00+00:00 {folder}: start\n2026-01-01T00:00:01+00:00 {last}\n"
        )
        write_json(made / folder / ".in_progress.json", {"identity": {}, "sessions": ["a", "b"]})
    write_json(made / "03_sft" / "manifest.json", {"metrics": {"final_val_accuracy": 0.5}})
    write_json(made / "03_sft" / "runtime.json", {"seconds": 61.0, "sessions": ["a"]})
    for step in (8, 12):
        state = {"global_step": step, "max_steps": 64}
        write_json(made / "05_ppo" / "resume" / f"checkpoint-{step}" / "trainer_state.json", state)
    (made / "05_ppo" / "resume" / "checkpoint-16").mkdir()
    (made / "05_ppo" / "resume" / "checkpoint-16" / "trainer_state.json").write_text("{")
    assert [str(each) for each in progress_of_run(made)] == [
        "03_sft: done | 1 min 01 s, final_val_accuracy 50.0 %",
        "05_ppo: begun, resume point 12 of 64 steps, 2 starts | step 8/64: val reward 0.1",
        "06_grpo: failed, 2 starts | error: x",
    ]
    done = run("progress.py", "--run_id", "none", "--outputs_root", str(tmp_path))
    assert done.returncode == 2 and "no stage has begun" in done.stderr
    assert progress_of_run(made)[0].state == "done"
