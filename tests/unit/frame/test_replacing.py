"""What --overwrite replaces: kept until its replacement has finished, whatever happens in between."""

from pathlib import Path

import pytest

from tests.support import toy
from utils.frame.files import UserError, read_json, sha256_of, write_text
from utils.frame.replacing import REPLACED
from utils.frame.stage import execute
from utils.frame.stage_plan import prepare


@pytest.fixture
def words(tmp_path):
    """The command line of a finished stage."""
    argv = ["--outputs_root", str(tmp_path)]
    assert execute(toy.FIRST, toy.run_first, argv) == 0
    return argv


@pytest.fixture
def out(tmp_path):
    return tmp_path / "run_001" / "01_preprocessing"


def fails(error):
    """Work that has written a file when it fails."""

    def run(ctx):
        write_text(ctx.out / "train.jsonl", "half")
        raise error

    return run


@pytest.mark.parametrize(
    "error", [UserError("own.f: has no such function"), RuntimeError("a bug"), KeyboardInterrupt()]
)
def test_what_fails_leaves_the_finished_stage_as_it_was(words, out, error, capfd):
    before = {path.name: sha256_of(path) for path in out.iterdir() if path.suffix != ".log"}
    try:
        assert execute(toy.FIRST, fails(error), [*words, "--rows", "7", "--overwrite"]) != 0
    except RuntimeError as raised:
        assert raised is error
    assert {path.name: sha256_of(path) for path in out.iterdir() if path.suffix != ".log"} == before
    assert prepare(toy.FIRST, words).status == "up_to_date"
    assert "01_preprocessing: what it held before is kept" in capfd.readouterr().out
    assert (out / "stage.log").read_text().count(": start (") == 2  # what was tried is told, too


def test_what_succeeds_leaves_nothing_of_the_old(words, out):
    assert execute(toy.FIRST, toy.run_first, [*words, "--rows", "7", "--overwrite"]) == 0
    assert (
        not (out / REPLACED).exists() and prepare(toy.FIRST, [*words, "--rows", "7"]).status == "up_to_date"
    )


def test_what_can_be_resumed_is_not_given_up(words, out):
    """The old files wait until the new work has finished."""

    def stopped(ctx):
        if not ctx.resuming:
            write_text(ctx.out / "resume" / "steps.txt", "1")
            raise KeyboardInterrupt
        toy.run_first(ctx)

    again = [*words, "--rows", "7"]
    assert execute(toy.FIRST, stopped, [*again, "--overwrite"]) == 130
    assert prepare(toy.FIRST, again).status == "interrupted" and (out / REPLACED).exists()
    assert execute(toy.FIRST, stopped, again) == 0
    assert read_json(out / "manifest.json")["metrics"] == {"rows": 7} and not (out / REPLACED).exists()


@pytest.mark.parametrize("number", range(1, 13))
def test_a_kill_at_any_move_loses_nothing(words, out, number, monkeypatch):
    """The n-th rename of the folder's files is the last thing that the process does."""
    before = {path.name for path in out.iterdir()}
    moves, rename = [], Path.rename

    def counted(self, target):
        moves.append(self)
        if len(moves) >= number:
            raise SystemExit  # and so are all that would mend it
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", counted)
    with pytest.raises(SystemExit):
        execute(toy.FIRST, fails(UserError("no")), [*words, "--overwrite"])
    monkeypatch.undo()
    assert execute(toy.FIRST, toy.run_first, words) == 0
    assert {path.name for path in out.iterdir()} - {REPLACED} == before
    assert prepare(toy.FIRST, words).status == "up_to_date"


def test_the_verdict_of_failure_stays_for_reading(words, out):
    def verdict(ctx):
        write_text(ctx.out / "problems.txt", "many")
        return 1

    assert execute(toy.FIRST, verdict, [*words, "--overwrite"]) == 1
    assert (out / "problems.txt").exists() and prepare(toy.FIRST, words).status == "missing"
    assert execute(toy.FIRST, toy.run_first, words) == 0  # the old files are back, and up to date
    assert not (out / "problems.txt").exists()
