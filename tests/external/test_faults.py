"""The harness of faults (docs/reliability.md) in a short form: on the toy pipeline, on a program that loses
what it is given, and on every reader.
"""

import sys

import pytest

from tests.external.faults.fuzz import SHARES, fuzz, fuzz_all
from tests.external.faults.trials import (
    SAME,
    STOPPED,
    TRACEBACK,
    WRONG,
    Program,
    at_a_time,
    at_an_operation,
    at_once,
    in_a_write,
    little_memory,
    planted_input,
    small_files,
    try_out,
)
from tests.support import toy
from utils.frame.files import REPO_ROOT, UserError
from utils.frame.stage import execute

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
        assert execute(*toy.STAGES[number], ["--outputs_root", str(root)]) == 0
    return root


def program(tmp_path, root, *words, reads=""):
    (tmp_path / "work").mkdir()
    made = Program([sys.executable, *words], root, tmp_path / "work", reads)
    made.measure()
    return made


def test_a_stage_that_is_disturbed_ends_in_the_same_bytes(tmp_path):
    stage = program(tmp_path, prepared(tmp_path, "01"), TOY, "03", "--outputs_root", "{root}")
    for disturb in (at_a_time, at_an_operation, in_a_write, small_files, little_memory):
        assert try_out(stage, disturb, 2, seed=0) == ({SAME: 2}, []), disturb
    assert try_out(stage, at_once, 1, seed=0) == ({SAME: 1}, [])


def test_what_is_planted_is_refused(tmp_path):
    words = (TOY, "10", "--outputs_root", "{root}")
    stage = program(tmp_path, prepared(tmp_path, "01", "03"), *words, reads="run_001/03_sft/ckpt_sft")
    assert try_out(stage, planted_input, 3, seed=0) == ({STOPPED: 3}, [])


def test_a_program_that_deserves_it_is_found_out(tmp_path):
    (tmp_path / "careless.py").write_text(CARELESS)
    (tmp_path / "prepared").mkdir()
    careless = program(tmp_path, tmp_path / "prepared", str(tmp_path / "careless.py"), "{root}")
    assert try_out(careless, at_an_operation, 1, seed=0)[0] == {SAME: 1}
    count, said = try_out(careless, in_a_write, 2, seed=0)
    assert count == {WRONG: 2} and "numbers.txt" in said[0]
    assert try_out(careless, small_files, 1, seed=0)[0] == {TRACEBACK: 1}


def test_readers_refuse_in_one_line_what_they_cannot_read(capsys):
    assert fuzz_all(100, seed=0)
    rows = capsys.readouterr().out.splitlines()
    assert [row.split(" | ")[0][2:] for row in rows[2:]] == [*SHARES, "all"]


def test_an_undocumented_exception_and_a_slow_input_are_counted(monkeypatch):
    monkeypatch.setattr("tests.external.faults.fuzz.SECONDS", 0)

    def reader(rng):
        raise rng.choice((UserError, KeyError))("odd")

    found = fuzz(reader, 20, seed=0)
    assert found.refused + found.exceptions == found.inputs == found.slow == 20
    assert found.refused and found.exceptions and "KeyError in" in next(iter(found.errors))


@pytest.fixture(autouse=True)
def alarms():
    """The fuzzer's own handler of alarms goes with the test."""
    import signal

    before = signal.getsignal(signal.SIGALRM)
    yield
    signal.signal(signal.SIGALRM, before)
