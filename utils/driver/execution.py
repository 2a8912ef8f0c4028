"""Running a graph of steps: what is up to date is skipped, what failed takes down only what rests on it."""

from __future__ import annotations

import concurrent.futures as futures
import importlib.metadata
import os
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from utils.documents.text import duration
from utils.driver.graph import ComparisonNode, Key, Node, Outcome, rests_on
from utils.driver.launch import Launch
from utils.driver.live_table import LiveTable, table_on_terminal
from utils.driver.process import Child, interrupts_held_back, say, stop
from utils.frame.failures import write_failures
from utils.frame.files import UserError
from utils.frame.manifest import MANIFEST, device_kind, update_run_manifest
from utils.frame.stage_plan import Prepared, load_script, prepare


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_jobs(one_process_each: bool) -> int:
    """Steps to run side by side: two where each is one process, and there are two cores and no GPU."""
    try:
        torch = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        torch = None
    return 2 if one_process_each and cores() >= 2 and device_kind(torch) == "cpu" else 1


def environment_of(jobs: int, processes: int = 1) -> dict[str, str] | None:
    """The environment of a step: the cores are shared by ``jobs`` with this many ``processes`` each."""
    if jobs * processes == 1:
        return None
    environment = {"OMP_NUM_THREADS": str(max(1, cores() // (jobs * processes))), **os.environ}
    if jobs > 1:
        quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
        environment = quiet | environment
    return environment


@dataclass
class Running:
    """A step that has been started, at ``begin`` by the monotonic clock."""

    node: Node
    prepared: Prepared
    child: Child
    begin: float


@dataclass
class Execution:
    """One execution of a graph.

    Args:
        nodes: each after the nodes that it needs; started in this order as far as ``jobs`` and needs allow.
        jobs: steps side by side.
        overwrite: the nodes that are redone although they are finished.
        launch: how a step is started.
        compare_only: start nothing but comparisons; what is not up to date counts as failed.
        known: what has been found up to date, so that it need not be looked at again.

    Attributes:
        outcomes: what became of each node.
        run_dirs: run id -> folder, of the runs that were begun.
        seconds: how long it all took.
    """

    nodes: Sequence[Node]
    jobs: int = 1
    overwrite: Collection[Key] = ()
    launch: Launch = Launch()
    compare_only: bool = False
    known: Mapping[Key, Prepared] = field(default_factory=dict)
    outcomes: dict[Key, Outcome] = field(default_factory=dict)
    run_dirs: dict[str, Path] = field(default_factory=dict)
    seconds: float = 0.0
    _children: list[Child] = field(default_factory=list)
    _table: LiveTable | None = None

    def run(self) -> dict[Key, Outcome]:
        """Run everything; returns what became of each node. A terminal shows a live table meanwhile.

        Where it is interrupted (KeyboardInterrupt), all steps are ended first; they resume another time.
        """
        with table_on_terminal(self.nodes, self.outcomes) as self._table:
            return self._run()

    def _run(self) -> dict[Key, Outcome]:
        begin = time.monotonic()
        running: dict[futures.Future, Running] = {}
        waiting = list(self.nodes)
        with futures.ThreadPoolExecutor(self.jobs) as pool:
            try:
                while waiting or running:
                    for node in list(waiting):
                        if len(running) == self.jobs:
                            break
                        if all(need in self.outcomes for need in node.needs):
                            waiting.remove(node)
                            if started := self._begin(node):
                                running[pool.submit(started.child.wait)] = started
                    if waiting and not running:
                        raise ValueError(f"{waiting[0].key} needs a step that is not before it")
                    for future in futures.wait(running, return_when=futures.FIRST_COMPLETED).done:
                        self._end(running.pop(future), future.result())
            except BaseException:
                stop(self._children)
                raise
        # Every stage does this; once more, for one that was killed after its manifest and before this, and
        # for two that ended at the same time.
        for run_dir in self.run_dirs.values():
            if run_dir.is_dir():
                update_run_manifest(run_dir)
        self.seconds = time.monotonic() - begin
        return self.outcomes

    def _begin(self, node: Node) -> Running | None:
        """Start a node whose needs have ended, or settle it without."""
        blocked = node.blocked(self.outcomes)
        argv = None if blocked else node.command(self.outcomes)
        if argv is None:
            self.outcomes[node.key] = blocked or Outcome("skipped")
            return None
        stage = load_script(node.step.script).STAGE
        try:
            if node.check:
                node.check()
            prepared = self._known(node) or prepare(stage, argv)
            if isinstance(node, ComparisonNode):
                changed = write_failures(prepared.run_dir, node.failures(self.outcomes))
                prepared = prepare(stage, argv) if changed else prepared
        except UserError as error:
            folder = node.plan.name
            self._fail(node, Outcome("failed", f"{folder}: {error}", 2, stage=folder))
            return None
        self.run_dirs[node.run_id] = prepared.run_dir
        name, status = self._name(node, prepared), prepared.status
        redo = node.key in self.overwrite
        if status == "up_to_date" and not redo:
            self._say(f"{self._place(node)} {name}: up to date")
            self.outcomes[node.key] = Outcome("up to date")
            return None
        refused = not redo and (self.compare_only or status.startswith("stale"))
        if refused and not isinstance(node, ComparisonNode):
            self._fail(node, _unfinished(prepared))
            return None
        self._say(f"{self._place(node)} {name}: {node.step.script} ({status.split(':')[0]})")
        # A comparison is derived from what is compared, and is redone when that changes.
        if redo or (isinstance(node, ComparisonNode) and status.startswith("stale")):
            argv = [*argv, "--overwrite"]
        command = self.launch.command(node.step.script, argv)
        env = environment_of(self.jobs, self.launch.processes(node.step.script))
        watcher = self._table.begin(node, name) if self._table else None
        label = name if self.jobs > 1 or watcher else None
        begin = time.monotonic()
        with interrupts_held_back():
            self._children.append(Child(command, label, env, watcher))
        return Running(node, prepared, self._children[-1], begin)

    def _known(self, node: Node) -> Prepared | None:
        """What has been found out of a node, where nothing that it rests on has changed since."""
        same = all(self.outcomes[need].status == "up to date" for need in node.needs)
        return self.known.get(node.key) if same else None

    def _end(self, running: Running, code: int) -> None:
        node, prepared = running.node, running.prepared
        seconds = time.monotonic() - running.begin
        if code == 0:
            self.outcomes[node.key] = Outcome("done", seconds=seconds)
            self._say(f"{self._place(node)} {self._name(node, prepared)}: finished in {duration(seconds)}")
            return
        folder = prepared.name
        reason = running.child.reason(code, prepared.run_dir, folder)
        # A mistake in what was to replace a finished step: that is back, and stays compared.
        kept = code == 2 and (prepared.out / MANIFEST).exists()
        self._fail(node, Outcome("failed", reason, code if code > 0 else 1, seconds, folder, kept))

    def _fail(self, node: Node, outcome: Outcome) -> None:
        """Note a failure and say, on one line, which methods it takes down and why."""
        self.outcomes[node.key] = outcome
        lost = [each.step.policy for each in rests_on(self.nodes, node.key) if each.step.policy]
        who = f"{', '.join(lost)} failed" if lost else f"{node.step.name} failed"
        where = f"{node.run_id}: " if self._several_runs else ""
        say(f"error: {where}{who}: {outcome.reason}", sys.stderr)

    def _say(self, line: str) -> None:
        """Print a line, unless the live table says the same."""
        if self._table is None:
            say(line)

    @property
    def _several_runs(self) -> bool:
        return len({node.run_id for node in self.nodes}) > 1

    def _name(self, node: Node, prepared: Prepared) -> str:
        """What the step writes, from the run's folder or, with several runs, from the outputs folder."""
        root = prepared.run_dir.parent if self._several_runs else prepared.run_dir
        return prepared.out.relative_to(root).as_posix()

    def _place(self, node: Node) -> str:
        keys = [each.key for each in self.nodes]
        return f"[{keys.index(node.key) + 1}/{len(keys)}]"


def _unfinished(prepared: Prepared) -> Outcome:
    """What becomes of a step that holds other work, or that was to have run elsewhere."""
    folder, stale = prepared.name, prepared.status.startswith("stale")
    if stale:
        why = f"holds other work ({prepared.status.removeprefix('stale: ')}), which is kept"
        return Outcome("failed", f"{folder}: {why}", 2, stage=folder, stale=True)
    return Outcome("failed", f"{folder}: has not finished (see {folder}/stage.log)", 1, stage=folder)


def exit_code(nodes: Sequence[Node], outcomes: dict[Key, Outcome]) -> int:
    """That of the first step, in the order of the nodes, that failed; 0 where none did."""
    codes = [outcomes[node.key].code for node in nodes if outcomes[node.key].status == "failed"]
    return codes[0] if codes else 0
