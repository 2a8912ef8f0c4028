"""Run 04 and 10 in one process or in two; test_evaluation_processes.py compares what they write.

usage: evaluation_processes.py MODELS RUN_DIR LEFT

MODELS holds a policy, `tiny`, and a folder of its checkpoints, `steps`. Two processes evaluate the policy
until one of them is killed; what they leave is copied to LEFT, and two more do all there is to do. They are
forked once everything is imported, with the environment that a launcher gives.
"""

import multiprocessing
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.support.evaluated_runs import SAMPLING, evaluate_run
from tests.support.scripts import execute_stage
from utils.evaluation import answers as answering
from utils.evaluation import token_values
from utils.evaluation.journal import JOURNAL
from utils.frame import stage
from utils.frame.processes import leave_processes, process_index
from utils.models import teacher


def in_many_slices(work: Callable) -> Callable:
    """Let the models run so few tokens at once that there is something to share."""
    return patch.object(teacher, "SLICE_TOKENS", 256)(patch.object(token_values, "SLICE_TOKENS", 256)(work))


@in_many_slices
def evaluate(models: Path, run_dir: Path) -> None:
    """An evaluation with samples, against a teacher."""
    assert evaluate_run(run_dir, models / "tiny", models / "steps" / "step_2", *SAMPLING) == 0


@in_many_slices
def do_all(models: Path, run_dir: Path) -> None:
    """The evaluation, one of every checkpoint of a folder, and candidates."""
    evaluate(models, run_dir)
    assert evaluate_run(run_dir, models / "steps", models / "steps" / "step_2", "--max_items", "3") == 0
    argv = ["--run_id", run_dir.name, "--outputs_root", str(run_dir.parent), "--num_candidates", "3"]
    argv += ["--teacher_name_or_path", str(models / "steps" / "step_2"), "--max_new_tokens", "8"]
    argv += ["--generation.batch_size", "6"]
    assert execute_stage("04_generate_candidates.py", argv) == 0


def evaluate_until_killed(models: Path, run_dir: Path) -> None:
    """The second process is killed before its second batch, when the first one has finished a batch."""
    journal = run_dir / "10_evaluation" / "tiny" / "resume" / JOURNAL
    original, calls = answering.complete, []

    def complete(*args, **kwargs):
        if calls and process_index() == 1:
            while not journal.is_file():
                time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGKILL)
        calls.append(1)
        return original(*args, **kwargs)

    with patch.object(answering, "complete", complete):
        evaluate(models, run_dir)


def in_two_processes(work: Callable, *arguments) -> list[int]:
    """Do the work in two processes that meet; return their exit codes. A killed one ends the other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def run(rank: int) -> None:
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in (places | address).items()})
        # The processes stay together until the last of several stages.
        with patch.object(stage, "leave_processes", lambda: None):
            work(*arguments)
        leave_processes()

    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=run, args=(rank,)) for rank in range(2)]
    for process in processes:
        process.start()
    wait([process.sentinel for process in processes])
    for process in processes:
        process.join(timeout=60)
        process.kill()
        process.join()
    return [process.exitcode for process in processes]


if __name__ == "__main__":
    models, run_dir, left = map(Path, sys.argv[1:])
    codes = in_two_processes(evaluate_until_killed, models, run_dir)
    assert codes[0] and codes[1] == -signal.SIGKILL, codes
    shutil.copytree(run_dir, left)
    assert in_two_processes(do_all, models, run_dir) == [0, 0]
