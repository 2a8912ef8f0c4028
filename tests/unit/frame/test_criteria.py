"""Acceptance criteria: how they are judged, and where a stage's stand."""

import json
from dataclasses import replace

import pytest

from tests.support import toy
from utils.frame.criteria import criteria_lines, judged
from utils.frame.stage import execute


@pytest.mark.parametrize(
    ("value", "bound", "passed"),
    [
        (0.9, {"at_least": 0.9}, True),
        (0.89, {"at_least": 0.9}, False),
        (0.0, {"above": 0.0}, False),
        (0.1, {"at_most": 0.1}, True),
        (0.2, {"at_most": 0.1}, False),
        (0, {"equal_to": 0}, True),
        (None, {"at_most": 1.0}, False),
        (float("nan"), {"at_most": 1.0}, False),
    ],
)
def test_a_value_is_held_against_its_bound(value, bound, passed):
    assert judged(value, **bound)["passed"] is passed


def test_one_that_failed_looks_different():
    found = {"a": judged(0.97, at_least=0.9), "b": judged(None, above=0.0)}
    assert criteria_lines(found) == ["  [pass] a: 0.97 (at least 0.9)", "  [FAIL] b: no value (above 0)"]


def test_they_stand_in_both_manifests_and_on_screen_and_decide_no_exit_code(tmp_path, capsys):
    def run(ctx):
        toy.run_first(ctx)
        ctx.criteria["rows"] = judged(3, at_least=5)

    argv = ["--outputs_root", str(tmp_path)]
    assert execute(replace(toy.FIRST), run, argv) == 0
    assert "  [FAIL] rows: 3 (at least 5)\n" in capsys.readouterr().out
    expected = {"rows": {"value": 3.0, "at_least": 5, "passed": False}}
    run_dir = tmp_path / "run_001"
    assert json.loads((run_dir / "01_preprocessing" / "manifest.json").read_text())["criteria"] == expected
    whole = json.loads((run_dir / "run_manifest.json").read_text())
    assert whole["stages"]["01_preprocessing"]["criteria"] == expected
    # A stage whose code states others now is still the same work.
    assert execute(toy.FIRST, toy.run_first, argv) == 0
    assert "up to date" in capsys.readouterr().out
