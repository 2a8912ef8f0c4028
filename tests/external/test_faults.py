"""The harness of faults (docs/reliability.md) in a short form: on the toy pipeline, on a program that loses
what it is given, and on every reader.
"""

import signal
import subprocess
import sys

import pytest

from tests.external.faults.fuzz import SHARES, fuzz, fuzz_all
from utils.frame.files import REPO_ROOT, UserError

TOY = str(REPO_ROOT / "tests" / "support" / "toy.py")
# It takes a file that is there for one that is whole.
CARELESS = """
import sys
from pathlib import Path
path = Path(sys.argv[1]) / "numbers.txt"
if not path.exists():
    path.write_text("".join(f"{number}\\n" for number in range(2000)))
"""


def prepared(tmp_path, *numbers):
    """A root in which these stages of the toy pipeline have run."""
    root = tmp_path / "prepared"
    for number in numbers:
        subprocess.run([sys.executable, TOY, number, "--outputs_root", root], check=True, capture_output=True)
    return root


def trials(root, *words):
    """The outcomes by fault, as the table of the harness has them, and all that it printed.

    In a process of its own: it forks, and this one has threads.
    """
    command = [sys.executable, "-m", "tests.external.faults", "trials", "--root", root, *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPO_ROOT)
    head, _, *rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line[:1] == "|"]
    outcomes = {
        row[0]: {name: int(n) for name, n in zip(head[2:], row[2:], strict=True) if int(n)} for row in rows
    }
    return done.returncode, outcomes, done.stdout + done.stderr


def test_a_stage_that_is_disturbed_ends_in_the_same_bytes(tmp_path):
    numbers = ("--kills", "6", "--limits", "2", "--starts", "1")
    code, outcomes, said = trials(
        prepared(tmp_path, "01"), *numbers, "--", "python", TOY, "03", "--outputs_root", "{root}"
    )
    assert code == 0 and len(outcomes) == 6, said
    assert all(found.keys() == {"same bytes"} for found in outcomes.values()), said


def test_what_is_planted_is_refused(tmp_path):
    words = ("--reads", "run_001/03_sft/ckpt_sft", "--planted", "3")
    code, outcomes, said = trials(
        prepared(tmp_path, "01", "03"), *words, "--", "python", TOY, "10", "--outputs_root", "{root}"
    )
    assert code == 0 and list(outcomes.values()) == [{"one-line stop": 3}], said


def test_a_program_that_deserves_it_is_found_out(tmp_path):
    (tmp_path / "careless.py").write_text(CARELESS)
    (tmp_path / "prepared").mkdir()
    careless = ("--", "python", str(tmp_path / "careless.py"), "{root}")
    code, outcomes, said = trials(tmp_path / "prepared", "--kills", "3", "--limits", "1", *careless)
    assert code == 1 and "numbers.txt" in said
    assert list(outcomes.values())[2:] == [{"silent wrong": 1}, {"traceback or crash": 1}], said


def test_readers_refuse_in_one_line_what_they_cannot_read(capsys):
    assert fuzz_all(100, seed=0)
    rows = capsys.readouterr().out.splitlines()
    assert [row.split(" | ")[0][2:] for row in rows[2:]] == [*SHARES, "all"]


def test_an_undocumented_exception_and_a_slow_input_are_counted(monkeypatch):
    monkeypatch.setattr("tests.external.faults.fuzz.SECONDS", -1)  # every input is a slow one

    def reader(rng):
        raise rng.choice((UserError, KeyError))("odd")

    found = fuzz(reader, 20, seed=0)
    assert found.refused + found.exceptions == found.inputs == found.slow == 20
    assert found.refused and found.exceptions and "KeyError in" in next(iter(found.errors))


@pytest.fixture(autouse=True)
def alarms():
    """The fuzzer's own handler of alarms goes with the test."""
    before = signal.getsignal(signal.SIGVTALRM)
    yield
    signal.signal(signal.SIGVTALRM, before)
