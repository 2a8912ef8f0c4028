"""Sharing a batch between processes: its size stays, and what cannot be shared evenly is refused."""

import pytest

from utils.frame.files import UserError
from utils.rollouts.batches import Batches, share_batches


@pytest.mark.parametrize(
    ("whole", "processes", "largest", "expected"),
    [
        ((64, 1, 2), 1, None, Batches(64, 1, 2)),
        ((64, 1, 2), 2, None, Batches(32, 1, 2)),  # one micro-batch a step: its rows
        ((64, 4, 4), 2, None, Batches(64, 2, 2)),  # micro-batches first
        ((64, 2, 4), 4, None, Batches(32, 1, 2)),  # then rows
        ((6, 3, 6), 2, None, Batches(3, 3, 6)),  # 2 does not divide 3 micro-batches, but their rows
        ((64, 1, 2), 2, 8, Batches(8, 4, 8)),
        ((6, 1, 1), 1, 4, Batches(3, 2, 2)),  # 4 does not divide 6
    ],
)
def test_the_whole_batch_stays(whole, processes, largest, expected):
    """Rows and rollouts over all processes are those of one."""
    rows, accumulation, steps = whole
    found = share_batches(rows, accumulation, steps, group=2, largest=largest, processes=processes)
    assert found == expected
    own = found.per_device_train_batch_size * processes
    assert own * found.gradient_accumulation_steps == rows * accumulation
    assert own * found.steps_per_generation == rows * steps


def test_what_cannot_be_shared_evenly_is_refused():
    with pytest.raises(UserError, match=r"3 processes cannot share micro-batches of 32 sequences"):
        share_batches(32, 1, processes=3)
    with pytest.raises(UserError, match=r"4 processes cannot share the 2 prompts of a rollout"):
        share_batches(8, 1, 2, group=8, processes=4)
