"""Forked steps behave as fresh processes do: output, exit codes, tracebacks, signals, ends."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from utils.driver import fork_server
from utils.driver.process import Child, start, stop
from utils.frame.files import REPO_ROOT


@pytest.fixture
def script(tmp_path, monkeypatch):
    """A factory of commands that run a script of the repository; nothing heavy is preloaded for it."""
    monkeypatch.setattr(fork_server, "REPO_ROOT", tmp_path)
    monkeypatch.setattr(fork_server, "PRELOADED", "json")

    def write(code: str, *words: str) -> list[str]:
        path = tmp_path / "05_step.py"
        path.write_text(textwrap.dedent(code))
        return [sys.executable, str(path), *words]

    return write


ENDS = {
    "done": ("print('out')", 0),
    "a code": ("import sys; print('to err', file=sys.stderr); sys.exit(3)", 3),
    "words": ("import sys; sys.exit('why')", 1),
    "a traceback": ("raise ValueError('no')", 1),
    "a signal": ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9),
    "at exit": ("import atexit; atexit.register(print, 'left')", 0),
    "its name": ("import sys; print(__name__, sys.argv[1:], sys.stdin.read())", 0),
    "its module": ("import json, sys; x = 1; print(sys.modules['__main__'].x)", 0),
}


@pytest.mark.skipif(sys.platform != "linux", reason="steps are forked on Linux")
@pytest.mark.parametrize("name", ENDS)
def test_a_fork_ends_as_a_fresh_process_does(script, name, monkeypatch):
    code, expected = ENDS[name]
    found = []
    for fresh in ("0", "1"):
        monkeypatch.setenv(fork_server.OFF, fresh)
        process = start(script(code, "--a", "b"), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert isinstance(process, subprocess.Popen) == (fresh == "1")
        out, err = process.stdout.read().decode(), process.stderr.read().decode()
        found.append((process.wait(), out, err.splitlines()[-1:]))
    assert found[0] == found[1] and found[0][0] == expected


@pytest.mark.skipif(sys.platform != "linux", reason="steps are forked on Linux")
def test_a_child_reads_its_error_and_is_stopped(script):
    child = Child(script("import sys; print('error: a line', file=sys.stderr); sys.exit(2)"), "x")
    assert child.wait() == 2 and child.tail[-1] == "error: a line"
    assert child.reason(2, fork_server.REPO_ROOT, "05_x") == "05_x: a line"
    sleeping = Child(script("import time; print('up', flush=True); time.sleep(60)"), "x")
    stop([sleeping])
    assert sleeping.wait() == -signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(sleeping.process.pid, 0)


KILLED = """
import os, signal, sys, time
from utils.driver import fork_server
fork_server.PRELOADED = "json"
forked = fork_server.Forked([sys.executable, sys.argv[1]])
while not os.path.exists(sys.argv[2]):
    time.sleep(0.01)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="steps are forked on Linux")
def test_a_fork_ends_with_the_driver(script, tmp_path):
    note = tmp_path / "pid"
    code = f"""
        import os, time
        with open({str(note)!r} + "-", "w") as file:
            file.write(str(os.getpid()))
        os.rename(file.name, {str(note)!r})
        time.sleep(60)
        os.rename({str(note)!r}, {str(note)!r} + " survived")
    """
    subprocess.run([sys.executable, "-c", KILLED, script(code)[1], str(note)], cwd=REPO_ROOT, check=False)
    child = int(note.read_text())
    with pytest.raises(ProcessLookupError):
        while True:
            os.kill(child, 0)
            time.sleep(0.01)
    assert note.exists()


def test_other_commands_are_fresh_processes(script, monkeypatch):
    assert not fork_server.can_fork([sys.executable, "-c", "pass"])
    assert not fork_server.can_fork(["python", script("")[1]])
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not fork_server.can_fork(script(""))
