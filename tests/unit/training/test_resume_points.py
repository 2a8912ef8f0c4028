"""Which resume points are kept."""

import os
from types import SimpleNamespace

import pytest

from utils.training.resume_points import KEPT, SealsResumePoints, resume_point


@pytest.mark.parametrize("clock", [1, -1], ids=["forward", "set back"])
def test_the_last_ones_are_kept_whatever_the_clock_says(tmp_path, clock):
    """Steps of other lengths, so that the order of names is none of numbers either."""
    folder = tmp_path / "resume"
    seals = SealsResumePoints(tmp_path)
    steps = (8, 9, 10, 100)
    for number, step in enumerate(steps):
        point = folder / f"checkpoint-{step}"
        point.mkdir(parents=True)
        (point / "optimizer.pt").write_bytes(bytes([step]))
        seals.on_save(SimpleNamespace(output_dir=folder), SimpleNamespace(global_step=step), None)
        os.utime(point, (1e9 + clock * 1000 * number,) * 2)
    assert {path.name for path in folder.iterdir()} == {f"checkpoint-{step}" for step in steps[-KEPT:]}
    assert resume_point(folder, pytest.fail).name == "checkpoint-100"
