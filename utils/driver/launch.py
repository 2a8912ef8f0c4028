"""How a step is started: by this Python, or by several processes of it under ``accelerate launch``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.driver.graph import ComparisonNode, Node
from utils.frame.config import read_yaml
from utils.frame.files import REPO_ROOT, UserError, resolve_path, shown, write_json
from utils.frame.stage_plan import load_script


@dataclass(frozen=True)
class Launch:
    """What starts a step.

    Args:
        config: Accelerate's settings (YAML) for the steps that several processes share; "": one process each.
        num_processes: processes of such a step, on all machines together.
        num_machines: machines that the settings are for.
    """

    config: str = ""
    num_processes: int = 1
    num_machines: int = 1

    def words(self, script: str, python: Sequence[str], accelerate: Sequence[str]) -> list[str]:
        """What comes before the script and its arguments."""
        if not self._shares(script):
            return list(python)
        words = [*accelerate, "--config_file", self.config, "--num_processes", str(self.num_processes)]
        # On one machine processes meet at a free port, so that steps can run side by side.
        return [*words, "--main_process_port", "0"] if self.num_machines == 1 else words

    def command(self, script: str, argv: Sequence[str]) -> list[str]:
        """The command that runs a script from any working directory, with this Python."""
        python = [sys.executable]
        words = self.words(script, python, [*python, "-m", "accelerate.commands.launch"])
        return [*words, str(REPO_ROOT / script), *argv]

    def processes(self, script: str) -> int:
        """How many processes run a script on this machine."""
        return max(1, self.num_processes // self.num_machines) if self._shares(script) else 1

    def _shares(self, script: str) -> bool:
        """Whether several processes run a script: those that take seconds run in one."""
        return bool(self.config) and load_script(script).STAGE.several_processes


def read_launch(config: str | None, num_processes: int | None) -> Launch:
    """Read what ``--accelerate_config`` and ``--num_processes`` ask for.

    ``num_processes`` None leaves it to the file. Raises UserError for a file that is none, for a number of
    processes without a file, and for a number of processes or machines that is none.
    """
    if not config:
        if num_processes is not None:
            raise UserError(
                f"--num_processes {num_processes} needs --accelerate_config FILE, e.g. "
                "configs/accelerate/ddp.yaml"
            )
        return Launch()
    path = Path(config).absolute() if Path(config).exists() else resolve_path(config)
    settings = read_yaml(path)
    counts = {
        "num_processes": settings.get("num_processes") if num_processes is None else num_processes,
        "num_machines": settings.get("num_machines", 1),
    }
    for name, count in counts.items():
        if not isinstance(count, int) or count < 1:
            raise UserError(f"{shown(path)}: {name} must be a whole number from 1 on, found {count!r}")
    from_here = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return Launch(str(from_here), **counts)


def export_plan(path: str | Path, nodes: Sequence[Node], launch: Launch, argv: Sequence[str]) -> list[dict]:
    """Write the steps as JSON, for a scheduler that runs them as jobs, and return them.

    A list, each step after those that it needs, of

        name    the folder that the step writes, with the run's: "run_001/03_sft"; unique
        run_id  the run
        argv    the command, to be run in the working directory that the driver has now
        needs   names of the steps whose results it reads
        after   when it may run: "ok" once its needs have succeeded, "any" once they have ended

    The last is the comparison, of what has succeeded: the driver itself with ``--compare_only``, which makes
    all comparisons of these runs. Steps that are up to date are listed too; run, they say so and end.

    Args:
        path: the file.
        nodes: the graph, its comparisons included.
        launch: how steps are started.
        argv: the driver's command line, without ``--export_plan``.
    """
    here = Path.cwd() == REPO_ROOT

    def path_of(script: str) -> str:
        return script if here else str(REPO_ROOT / script)

    def script_words(script: str) -> list[str]:
        return [*launch.words(script, ["python"], ["accelerate", "launch"]), path_of(script)]

    names = {node.key: f"{node.run_id}/{node.plan.name}" for node in nodes}
    steps: list[dict[str, Any]] = [
        {
            "name": names[node.key],
            "run_id": node.run_id,
            "argv": [*script_words(node.step.script), *node.argv],
            "needs": [names[need] for need in node.needs],
            "after": "ok",
        }
        for node in nodes
        if not isinstance(node, ComparisonNode)
    ]
    evaluated = [names[node.key] for node in nodes if node.step.policy]
    compare = ["python", path_of("12_driver.py"), *argv, "--compare_only"]
    steps.append(
        {
            "name": names[nodes[-1].key],
            "run_id": nodes[-1].run_id,
            "argv": compare,
            "needs": evaluated,
            "after": "any",
        }
    )
    write_json(path, steps)
    return steps
