"""The process that algebra runs in: it is cut off, fails, dies, is shared by threads, and goes on."""

import threading

import pytest

from utils.grading import worker

# Each step grows on the one before: SymPy does not simplify the twentieth in minutes.
STEPS = [
    ["add", "a0", "a1"],
    *([["exp", i, "a0"], ["divide", i, f"a{i % 5}"], ["add", i, max(i - 1, 0)]][i % 3] for i in range(20)),
]


def sums_are_equal(number: int = 0, **limits) -> bool:
    gold, predicted = [["add", "a0", f"a{number}"]], [["add", f"a{number}", "a0"]]
    return worker.call("programs_equal", **limits, gold=gold, predicted=predicted)


def test_a_hang_is_cut_off_and_the_next_comparison_is_made():
    with pytest.raises(worker.WorkerTimeout):
        worker.call("programs_equal", 0.02, gold=STEPS, predicted=STEPS[:-1])
    assert sums_are_equal()


def test_a_failed_comparison_is_reported_and_the_worker_goes_on():
    with pytest.raises(worker.WorkerFailure, match="KeyError"):
        worker.call("no such task")
    assert sums_are_equal()


def test_threads_share_the_worker():
    verdicts: dict[int, bool] = {}
    threads = [
        threading.Thread(target=lambda n=number: verdicts.update({n: sums_are_equal(n)}))
        for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == dict.fromkeys(range(8), True)


def test_a_killed_worker_is_replaced():
    assert sums_are_equal()
    worker._WORKER._process.kill()
    worker._WORKER._process.wait()
    assert sums_are_equal(1)
