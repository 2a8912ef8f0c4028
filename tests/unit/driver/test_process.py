"""The driver's processes: output, reasons, interrupts; and real stages that fail, resume and lock."""

import contextlib
import os
import signal
import struct
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support.driver import DRIVER, statuses
from utils.driver import process
from utils.driver.execution import Execution, exit_code
from utils.driver.process import Child, interrupts_held_back, stop
from utils.frame.files import REPO_ROOT, read_json

# ---------------------------------------------------------------------------------------- one process


def child(code: str, label: str | None = None) -> Child:
    return Child([sys.executable, "-c", textwrap.dedent(code)], label)


def ended(
    code: str, capfd, label: str | None = None, run_dir=Path("/x/outputs/r")
) -> tuple[int, str, str, str]:
    """(exit code, reason, standard output, standard error as passed on)."""
    running = child(code, label)
    exit_code = running.wait()
    out, err = capfd.readouterr()
    return exit_code, running.reason(exit_code, run_dir, "05_ppo"), out, err


@pytest.mark.parametrize("label", [None, "r/05_ppo"])
def test_the_reason_is_the_last_error_line(capfd, label):
    code = """
        import sys
        print("begun")
        print("error: a first one", file=sys.stderr)
        print("a warning", file=sys.stderr)
        print("error: /x/outputs/r/04_candidates/x has no pairs", file=sys.stderr)
        sys.exit(2)
    """
    code, reason, out, err = ended(code, capfd, label)
    assert (code, reason) == (2, "05_ppo: 04_candidates/x has no pairs")
    mark = f"[{label}] " if label else ""
    assert out == f"{mark}begun\n"
    # The last error line is the driver's to say, once, with the methods that it concerns.
    assert err == f"{mark}error: a first one\n{mark}a warning\n"


def test_an_error_line_of_a_step_that_succeeds_is_shown(capfd):
    code, _, _, err = ended("import sys; print('error: never mind', file=sys.stderr)", capfd)
    assert (code, err) == (0, "error: never mind\n")


def test_the_reason_of_a_crash_names_the_log(capfd):
    code, reason, _, err = ended("raise FloatingPointError('loss is nan\\nat step 3')", capfd)
    assert (code, reason) == (1, "05_ppo: FloatingPointError: loss is nan (see 05_ppo/stage.log)")
    assert err.startswith("Traceback") and err.endswith("at step 3\n")


def test_the_reason_of_a_signal_and_of_a_silent_verdict(capfd):
    code, reason, _, _ = ended("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", capfd)
    assert (code, reason) == (-9, "05_ppo: ended by SIGKILL (see 05_ppo/stage.log)")
    code, reason, _, _ = ended("import sys; print('so so', file=sys.stderr); sys.exit(1)", capfd)
    assert (code, reason) == (1, "05_ppo: exit code 1 (see 05_ppo/stage.log)")


def test_reasons_are_one_short_printable_line_without_places():
    text = "/x/outputs/r/03_sft/a and /x/outputs\x1b[0m"
    assert process._within(text, Path("/x/outputs/r")) == "03_sft/a and outputs [0m"
    running = SimpleNamespace(_said=lambda: (["error: " + "é" * 1000], []), crashed=False)
    assert len(Child.reason(running, 2, Path("/x/r"), "05_ppo")) < 600


def test_lines_of_several_steps_stay_whole(capfd):
    """Two steps that write piece by piece at the same time, bars and long lines among it."""
    code = """
        import sys, time
        for i in range(20):
            sys.stdout.write("a" * 500); sys.stdout.flush(); time.sleep(0.002)
            sys.stdout.write("b\\n"); sys.stdout.flush()
            sys.stderr.write(f"10%|#\\r50%|##\\rbar {i}\\n")
    """
    children = [child(code, label) for label in ("one", "two")]
    assert [each.wait() for each in children] == [0, 0]
    out, err = capfd.readouterr()
    assert sorted(out.splitlines()) == ["[one] " + "a" * 500 + "b"] * 20 + ["[two] " + "a" * 500 + "b"] * 20
    assert sorted(err.splitlines()) == sorted(
        f"[{each}] bar {i}" for each in ("one", "two") for i in range(20)
    )


TERMINAL = """
import sys
sys.path.insert(0, sys.argv[1])
from utils.driver.process import Child
print("driver sees", sys.stderr.isatty(), flush=True)
child = Child([sys.executable, "-c", '''
import os, sys
sys.stderr.write(f"bar {sys.stderr.isatty()} {os.get_terminal_size(2).columns}\\\\r")
sys.stderr.write("errand\\\\n"); sys.stderr.write("error: kept back\\\\n")
sys.exit(2)
'''])
code = child.wait()
print(code, child.reason(code, __import__("pathlib").Path("/r"), "05_ppo"))
"""


def test_alone_on_a_terminal_a_step_sees_it():
    """Progress bars need it; and the driver still reads the reason."""
    import fcntl
    import termios

    read, write = os.openpty()
    fcntl.ioctl(write, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 77, 0, 0))
    done = subprocess.run(
        [sys.executable, "-c", TERMINAL, str(REPO_ROOT)],
        stdout=subprocess.PIPE,
        stderr=write,
        text=True,
        timeout=60,
    )
    os.close(write)
    assert done.stdout == "driver sees True\n2 05_ppo: kept back\n"
    assert os.read(read, 1000) == b"bar True 77\rerrand\r\n"
    os.close(read)


def test_stop_ends_what_is_deaf_to_a_polite_kill(monkeypatch, capfd):
    monkeypatch.setattr(process, "GRACE", 0.1)
    monkeypatch.setattr(process, "PATIENCE", 0.3)
    polite = "import signal, time; print(1, flush=True); time.sleep(60)"
    deaf = polite.replace("print", "signal.signal(signal.SIGTERM, signal.SIG_IGN); print")
    children = [child(deaf, "deaf"), child(polite, "polite")]
    out = ""
    while out.count("1\n") < 2:
        time.sleep(0.01)
        out += capfd.readouterr().out
    stop(children)
    assert [each.wait() for each in children] == [-signal.SIGKILL, -signal.SIGTERM]


# --------------------------------------------------------- real stages, which do what a file tells them to


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "code", "reason"),
    [
        ("mistake", 2, "05_ppo_b: 05_ppo_b: 0 pairs, lower min_margin"),
        ("crash", 1, "05_ppo_b: FloatingPointError: loss is nan (see 05_ppo_b/stage.log)"),
    ],
)
def test_a_failure_is_mended_and_the_rest_continues(fake, capfd, what, code, reason):
    (fake.control / "b").write_text(what)
    outcomes = Execution(fake.nodes).run()
    assert statuses(outcomes) == "a:done b:failed c:done d:blocked"
    assert outcomes["r", "d"].reason == outcomes["r", "b"].reason == reason
    assert exit_code(fake.nodes, outcomes) == code
    captured = capfd.readouterr()
    assert captured.err.splitlines()[-1] == f"error: b failed: {reason}"
    assert "05_ppo_c: done in" in captured.out
    assert sorted(read_json(fake.out / "run_manifest.json")["stages"]) == ["05_ppo_a", "05_ppo_c"]

    (fake.control / "b").unlink()
    outcomes = Execution(fake.nodes).run()
    assert statuses(outcomes) == "a:up to date b:done c:up to date d:done"
    assert fake.calls() == ["a", "b", "c", "b+", "d"]
    assert (fake.out / "05_ppo_d" / "out.txt").read_text() == "abd"
    assert sorted(read_json(fake.out / "run_manifest.json")["stages"]) == [
        f"05_ppo_{name}" for name in "abcd"
    ]


@pytest.mark.slow
def test_two_jobs_write_the_same_manifests(fake, capfd):
    Execution(fake.nodes, jobs=2).run()
    out = capfd.readouterr().out
    assert "[05_ppo_b] 05_ppo_b: start (r, seed 0)\n" in out
    two = {path: path.read_bytes() for path in fake.out.rglob("*manifest.json")}
    Execution(fake.nodes, jobs=1, overwrite={node.key for node in fake.nodes}).run()
    assert len(two) == 5 and two == {path: path.read_bytes() for path in fake.out.rglob("*manifest.json")}


@pytest.fixture
def interruptible():
    """SIGINT as in a terminal: a shell's background job ignores it, and so do its children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_ends_the_steps_which_resume(interruptible, fake, number, code):
    for name in "ab":
        (fake.control / name).write_text("sleep")
    command = [sys.executable, "-c", DRIVER, str(fake.script), str(fake.out.parent), "a", "b"]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    notes = [fake.control / f"{name}.pid" for name in "ab"]
    while not all(note.exists() and note.read_text() for note in notes):
        assert driver.poll() is None, driver.communicate()
        time.sleep(0.01)
    driver.send_signal(number)
    _, err = driver.communicate(timeout=60)
    assert driver.returncode == code
    assert err.splitlines()[-1] == "error: interrupted; run the same command again to resume"
    for note in notes:
        with pytest.raises(ProcessLookupError):
            os.kill(int(note.read_text()), 0)
        note.with_suffix("").unlink()
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and sorted(fake.calls()) == ["a", "a+", "b", "b+"]


@pytest.mark.slow
def test_a_killed_drivers_steps_end_with_it_and_resume(fake):
    """Killed by itself: nobody is left to end them."""
    (fake.control / "a").write_text("sleep")
    command = [sys.executable, "-c", DRIVER, str(fake.script), str(fake.out.parent), "a"]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    note = fake.control / "a.pid"
    while not (note.exists() and note.read_text()):
        assert driver.poll() is None
        time.sleep(0.01)
    driver.kill()
    driver.wait()
    _ended(int(note.read_text()))
    (fake.control / "a").unlink()
    Execution(fake.nodes[:1]).run()
    assert fake.calls() == ["a", "a+"]


def _ended(process: int) -> None:
    """Wait until a process that is no child is gone."""
    with contextlib.suppress(ProcessLookupError):
        while True:
            os.kill(process, 0)
            time.sleep(0.01)


def test_an_interrupt_waits_until_a_step_that_is_being_started_is_known(interruptible):
    """Otherwise the step runs on, and the driver waits for what it writes."""
    begun = []
    with pytest.raises(KeyboardInterrupt), interrupts_held_back():
        signal.raise_signal(signal.SIGINT)
        begun.append("known")
    assert begun == ["known"]
    with pytest.raises(KeyboardInterrupt):  # as before
        signal.raise_signal(signal.SIGINT)


@pytest.mark.slow
def test_a_second_driver_is_refused_by_the_lock(fake):
    """It says so for the step that is being written, and takes nothing from the first."""
    (fake.control / "a").write_text("sleep")
    command = [sys.executable, "-c", DRIVER, str(fake.script), str(fake.out.parent), "a"]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (fake.control / "a.pid").exists():
        assert first.poll() is None, first.communicate()
        time.sleep(0.01)
    second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert second.returncode == 2 and second.stderr.count("\n") == 1
    assert "error: a failed: 05_ppo_a: 05_ppo_a is being written by another process" in second.stderr
    first.terminate()
    assert first.wait(60) == 143
