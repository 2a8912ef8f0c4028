"""What jobs ask of a SLURM cluster, from a small YAML file and the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from utils.frame.config import load_tier
from utils.frame.files import REPO_ROOT, UserError, resolve_path
from utils.frame.pipeline import PIPELINE
from utils.frame.typed_settings import setting

# A whole run in one job, or the comparison that the driver makes in the end.
DRIVER = "12_driver"
# sbatch reads these itself; a command-line option would win over them, so none is given where one is set.
VARIABLES = {
    "account": "SBATCH_ACCOUNT",
    "partition": "SBATCH_PARTITION",
    "qos": "SBATCH_QOS",
    "constraint": "SBATCH_CONSTRAINT",
    "time": "SBATCH_TIMELIMIT",
    "gpus_per_node": "SBATCH_GPUS_PER_NODE",
    "mem": "SBATCH_MEM_PER_NODE",
}


@dataclass(frozen=True)
class Resources:
    """What one job asks for, under the names of sbatch's options; None leaves it to the cluster.

    ``nodes`` and ``tasks_per_node`` are for steps under ``accelerate launch``. ``gpus_per_node`` may name a
    kind ("a100:4"); 0 is none, also where the general setting is some.
    """

    account: str | None = None
    partition: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time: str | None = None
    nodes: int | None = setting(None, "nodes of a step", at_least=1)
    tasks_per_node: int | None = setting(None, "tasks on each", at_least=1)
    gpus_per_node: int | str | None = None
    cpus_per_task: int | None = setting(None, "CPUs of each task", at_least=1)
    mem: str | None = None

    def validate(self) -> None:
        if (self.tasks_per_node or 1) > 1 and self.gpus:
            raise ValueError(
                f"tasks_per_node is {self.tasks_per_node}, but one task drives all GPUs of its node: give "
                "--num_processes to the driver, and tasks_per_node 1 here"
            )
        if self.time is not None:
            seconds_of(self.time)

    @property
    def gpus(self) -> int:
        """GPUs of a node; 0 for what is no number, which SLURM refuses itself."""
        number = str(self.gpus_per_node or 0).rpartition(":")[2]
        return int(number) if number.isdigit() else 0


@dataclass(frozen=True)
class Cluster(Resources):
    """The file: general resources, those of single steps by folder, and how jobs are run."""

    steps: dict[str, Resources] = field(default_factory=dict)
    container: str | None = None
    container_options: list[str] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)
    signal_seconds: int = 120
    max_requeues: int = setting(50, "how often a job may be queued again", at_least=0)
    extra: list[str] = field(default_factory=list)

    def validate(self) -> None:
        super().validate()
        known = [*(row.folder for row in PIPELINE), DRIVER]
        for name in self.steps:
            if name not in known:
                raise ValueError(f"steps: no step writes {name}; there are {', '.join(known)}")
        if not 10 <= self.signal_seconds <= 65535:
            raise ValueError(f"signal_seconds must be from 10 to 65535, found {self.signal_seconds}")

    def resources(self, folder: str) -> Resources:
        """What the step that writes ``folder`` asks for: its own settings, else the general."""
        named = [name for name in self.steps if folder == name or folder.startswith(f"{name}_")]
        own = self.steps[max(named, key=len)] if named else Resources()
        values = {}
        for each in fields(Resources):
            value = getattr(own, each.name)
            values[each.name] = getattr(self, each.name) if value is None else value
        return Resources(**values)

    def options(self, folder: str, launched: bool) -> list[str]:
        """sbatch's options for a step; ``launched`` tells that it may take several tasks.

        Raises UserError where the time limit leaves no time.
        """
        asked = self.resources(folder)
        nodes, tasks = (asked.nodes or 1, asked.tasks_per_node or 1) if launched else (1, 1)
        if asked.time and seconds_of(asked.time) <= self.signal_seconds:
            raise UserError(
                f"time {asked.time} of {folder} is not above signal_seconds ({self.signal_seconds}): the job "
                "would go back into the queue as soon as it starts"
            )
        words = [f"--nodes={nodes}", f"--ntasks-per-node={tasks}"]
        for name, variable in VARIABLES.items():
            value = getattr(asked, name)
            if value is not None and str(value) != "0" and not os.environ.get(variable):
                words.append(f"--{name.replace('_', '-')}={value}")
        if asked.cpus_per_task:
            words.append(f"--cpus-per-task={asked.cpus_per_task}")
        return [*words, f"--signal=B:USR1@{self.signal_seconds}", *self.extra]

    def tasks(self, folder: str) -> int:
        """Tasks of a step under ``accelerate launch``."""
        asked = self.resources(folder)
        return (asked.nodes or 1) * (asked.tasks_per_node or 1)

    def environment(self) -> dict[str, str]:
        """What slurm/job.sbatch and slurm/task.sh read, beside what is set already."""
        container = os.environ.get("BELLMAN_CONTAINER") or self.container
        values: Mapping[str, str | None] = {
            "BELLMAN_ROOT": str(REPO_ROOT),
            "BELLMAN_CONTAINER": container and str(resolve_path(container)),
            "BELLMAN_CONTAINER_OPTIONS": " ".join(self.container_options),
            "BELLMAN_MODULES": " ".join(self.modules),
            "BELLMAN_MAX_REQUEUES": str(self.max_requeues),
            # The rest is SLURM's, which takes its time to requeue.
            "BELLMAN_PATIENCE": str(self.signal_seconds // 2),
        }
        return {key: value for key, value in values.items() if value}


def seconds_of(time: str) -> int:
    """A time limit (minutes, m:s, h:m:s, d-h, d-h:m, d-h:m:s) in seconds. Raises ValueError for another."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time)
    if not found:
        raise ValueError(f'time must be as SLURM writes it, e.g. "12:00:00" or "2-00:00:00", found "{time}"')
    days, *rest = found.groups()
    numbers = [int(number) for number in rest if number is not None]
    if days is not None or len(numbers) == 3:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    else:
        hours, (minutes, seconds) = 0, [*numbers, 0][:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def read_cluster(path: str | None) -> Cluster:
    """Read a cluster's file: ``path``, else slurm/cluster.local.yaml, else slurm/cluster.yaml.

    Raises UserError for a file that is missing or wrong, naming the key, and for a container that is missing.
    """
    local = REPO_ROOT / "slurm" / "cluster.local.yaml"
    shipped = local.with_name("cluster.yaml")
    cluster = load_tier(Cluster, resolve_path(path) if path else local if local.exists() else shipped)
    container = cluster.environment().get("BELLMAN_CONTAINER")
    if container and not Path(container).exists():
        raise UserError(f"container {container}: no such file; build it as slurm/apptainer.def says")
    return cluster
