"""A real SLURM of one node: munged, slurmctld and slurmd in a folder and on ports of their own.

For root alone (a container): slurmd starts jobs under other users' names. Without control groups, accounting
or GPUs; nothing of the machine's own SLURM or munge is used or changed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from utils.frame.files import REPO_ROOT

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel", "sinfo")

# A requeued job waits until the credential of its last start has expired, two minutes unless told otherwise.
CONFIG = """\
ClusterName=bellman
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
PlugStackConfig=/dev/null
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1
KillWait=5
OverTimeLimit=0
MinJobAge=86400
ReturnToService=2
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str:
    """Why there can be no cluster here, "" where there can."""
    if missing := [name for name in PROGRAMS if not shutil.which(name, path=_path())]:
        return f"needs SLURM (apt-get install slurm-wlm munge): no {', '.join(missing)}"
    return "" if os.geteuid() == 0 else "a SLURM node is started by root alone"


@contextlib.contextmanager
def slurm_cluster(cpus: int = 2) -> Iterator[dict[str, str]]:
    """Run a cluster; yields the environment in which SLURM's commands speak to it.

    Raises RuntimeError, with the daemons' last lines, where it does not come up.
    """
    # Not below pytest's folder: the path of a socket has at most 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="slurm_"))
    daemons: list[subprocess.Popen] = []
    env = {
        key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SBATCH", "SQUEUE"))
    }
    env |= {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}

    def start(name: str, *words: str, ready: Callable[[], bool]) -> None:
        log = open(folder / f"{name}.log", "wb")  # noqa: SIM115 - the daemon's for as long as it runs
        daemons.append(
            subprocess.Popen([shutil.which(name, path=_path()), *words], stdout=log, stderr=log, env=env)
        )
        log.close()
        for _ in range(600):
            if daemons[-1].poll() is None and ready():
                return
            time.sleep(0.05)
        last = (folder / f"{name}.log").read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{name} does not come up:\n{last}")

    def says(*command: str) -> str:
        return subprocess.run(command, env=env, capture_output=True, text=True).stdout

    try:
        write_config(folder, cpus)
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        files = {"socket": "socket", "pid-file": "pid", "seed-file": "seed", "log-file": "munge.log"}
        words = [f"--{option}={folder}/munge.{ending}" for option, ending in files.items()]
        socket_file = folder / "munge.socket"
        start("munged", "--foreground", "--force", f"--key-file={key}", *words, ready=socket_file.exists)
        start("slurmctld", "-D", "-c", ready=lambda: "UP" in says("scontrol", "ping"))
        start("slurmd", "-D", ready=lambda: "idle" in says("sinfo", "--noheader", "--format=%T"))
        yield env
    finally:
        if daemons:
            _end_jobs(env)
        for daemon in reversed(daemons):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.send_signal(signal.SIGKILL)
                daemon.wait()
        shutil.rmtree(folder, ignore_errors=True)


def run(script: str, *words: str, **env: str) -> subprocess.CompletedProcess:
    """Run a script of slurm/ to its end, as a user does."""
    command = [sys.executable, str(REPO_ROOT / "slurm" / script), *words]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **env}, cwd=REPO_ROOT)


def write_config(folder: Path, cpus: int) -> None:
    """slurm.conf, on two ports that are free now, and the folders that it names."""
    for name in ("state", "spool"):
        (folder / name).mkdir()
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        ports = {"controller_port": one.getsockname()[1], "node_port": other.getsockname()[1]}
    host = socket.gethostname().split(".")[0]
    (folder / "slurm.conf").write_text(CONFIG.format(folder=folder, host=host, cpus=cpus, **ports))


def _end_jobs(env: dict[str, str]) -> None:
    """Cancel every job and wait until none runs, so that no process of theirs outlives the cluster."""
    subprocess.run(["scancel", "--state=PENDING", "--user=root"], env=env, capture_output=True)
    subprocess.run(["scancel", "--user=root"], env=env, capture_output=True)
    for _ in range(200):
        queue = subprocess.run(["squeue", "--noheader"], env=env, capture_output=True, text=True)
        if queue.returncode or not queue.stdout.strip():
            return
        time.sleep(0.1)


def _path() -> str:
    """PATH with the folders of system programs, which a user's own may leave out."""
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
