"""Fixtures of the driver's tests: a world without processes, and real steps of a script of their own."""

import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support.driver import FAKE
from utils.driver import execution
from utils.driver.goal import Step
from utils.driver.graph import Node
from utils.frame.failures import read_failures
from utils.frame.files import REPO_ROOT
from utils.frame.stage_plan import Prepared, make_plan


@pytest.fixture
def stages(monkeypatch, tmp_path):
    """A world in which every step succeeds but those in ``codes``, and has the status in ``statuses``.

    Both are by folder ("05_ppo"), or by run and folder ("r_seed_1/05_ppo"). ``failed(run)`` is what the run's
    failed.json says: what failed -> the stage that did, and why.
    """
    world = SimpleNamespace(statuses={}, codes={}, commands=[], most=0, alive=0)
    world.failed = lambda run="r": {
        each.name: (each.stage, each.reason) for each in read_failures(tmp_path / run)
    }

    def of(table, run_dir, out, default):
        name = out.relative_to(run_dir).as_posix()
        return table.get(f"{run_dir.name}/{name}", table.get(name, default))

    def prepare(stage, argv):
        plan = make_plan(stage, argv)
        run_dir = tmp_path / plan.run_dir.name
        out = run_dir / plan.name
        return Prepared(None, run_dir, out, of(world.statuses, run_dir, out, "missing"))

    class FakeChild:
        def __init__(self, command, label, env, watcher):
            words = [word for word in command[2:] if word != "--overwrite"]
            self.plan = prepare(execution.load_script(Path(command[1]).name).STAGE, words)
            world.commands.append((Path(command[1]).name, command[2:]))
            world.alive += 1
            world.most = max(world.most, world.alive)

        def wait(self):
            time.sleep(0.01)
            world.alive -= 1
            return of(world.codes, self.plan.run_dir, self.plan.out, 0)

        def reason(self, code, run_dir, folder):
            return f"{folder}: reason {code}"

    monkeypatch.setattr(execution, "prepare", prepare)
    monkeypatch.setattr(execution, "Child", FakeChild)
    return world


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Steps a, b (reads a), c (reads a) and d (reads b), of a script that real processes run."""
    control = tmp_path / "control"
    control.mkdir()
    script = tmp_path / f"fake_{tmp_path.name}.py"
    script.write_text(FAKE)
    monkeypatch.setenv("FAKE_CONTROL", str(control))
    monkeypatch.setenv("PYTHONPATH", str(REPO_ROOT))
    nodes = []
    for name, reads in (("a", ""), ("b", "a"), ("c", "a"), ("d", "b")):
        words = (
            "--run_id",
            "r",
            "--outputs_root",
            str(tmp_path / "out"),
            "--name",
            name,
            "--reads",
            f"[{reads}]",
        )
        nodes.append(Node("r", Step(name, str(script)), words, tuple(("r", need) for need in reads)))
    return SimpleNamespace(
        nodes=nodes,
        out=tmp_path / "out" / "r",
        control=control,
        script=script,
        calls=lambda: (control / "calls").read_text().split(),
    )
