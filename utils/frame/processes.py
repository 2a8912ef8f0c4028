"""The processes that run a stage together, as `accelerate launch` (or torchrun) starts them.

One process, the main one, decides, writes and speaks; the others compute their share. Without a launcher
there is one process, every function here does nothing, and torch is not imported.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from typing import Any, TypeVar

T = TypeVar("T")

# How long a process waits for another, which may be grading alone. One that has ended is noticed at once: the
# launcher then ends the others.
PATIENCE = datetime.timedelta(hours=12)


def num_processes() -> int:
    """How many processes run this stage together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_index() -> int:
    """Which of them this is, from 0."""
    return int(os.environ.get("RANK", "0")) if num_processes() > 1 else 0


def is_main_process() -> bool:
    """Whether this is the one that writes and speaks."""
    return process_index() == 0


def join_processes() -> None:
    """Meet the others; nothing below may be called before. Accelerate chooses NCCL or gloo."""
    if num_processes() > 1:
        import torch
        from accelerate import DistributedType, PartialState

        PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
        if shards_on_cpu():
            # Accelerate offers FSDP where it sees GPUs; to it, several CPU processes are of another kind.
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def shards_on_cpu() -> bool:
    """Whether FSDP is asked for without a GPU, which is of use for trying things out."""
    import torch

    return os.environ.get("ACCELERATE_USE_FSDP") == "true" and not torch.cuda.is_available()


def leave_processes() -> None:
    """End together: a process that leaves while another still holds the connection may abort at its exit."""
    if num_processes() > 1:
        from torch import distributed

        if distributed.is_initialized():
            distributed.barrier()
            distributed.destroy_process_group()


def lost_another(error: BaseException) -> bool:
    """Whether an error only says that another process has ended."""
    text = str(error)
    return num_processes() > 1 and ("closed by peer" in text or "Connection reset by peer" in text)


def wait_for_everyone() -> None:
    """Go on once every process is here."""
    if num_processes() > 1:
        from torch import distributed

        distributed.barrier()


def from_main(value: T) -> T:
    """The main process's ``value``, in every process (it must be picklable)."""
    if num_processes() == 1:
        return value
    from torch import distributed

    sent: list[Any] = [value]
    distributed.broadcast_object_list(sent)
    return sent[0]


def gather_lists(items: Sequence[T]) -> list[list[T]]:
    """The ``items`` of every process, in the order of the processes, in every process."""
    if num_processes() == 1:
        return [list(items)]
    from torch import distributed

    found: list[Any] = [None] * num_processes()
    distributed.all_gather_object(found, list(items))
    return found


def gather_items(items: Sequence[T]) -> list[T]:
    """The ``items`` of every process, one process's after the other's, in every process."""
    return [item for of_process in gather_lists(items) for item in of_process]


def share(items: Sequence[T]) -> list[T]:
    """What this process does of ``items``: every N-th one, so that a sorted list is shared evenly."""
    return list(items)[process_index() :: num_processes()]


def merge_shares(items: Sequence[T]) -> list[T]:
    """The results of every process for its `share`, in the order of the whole, in every process."""
    shares = gather_lists(items)
    return [shares[place % len(shares)][place // len(shares)] for place in range(sum(map(len, shares)))]
