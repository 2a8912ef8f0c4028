"""What a model will cost on the device that is there: its memory as the system states it, its speed measured.

The estimates that configurations hold are for the cards of `resources.CARDS`, wherever they are made.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import torch

from utils.models.inspection.architecture import Architecture
from utils.models.inspection.resources import OVERHEAD_GB, Hardware, hours, memory
from utils.models.loading import device

CPU_OVERHEAD_GB = 1.0  # Python and its libraries
SIDE = {"cpu": 1024, "cuda": 8192}  # of the matrices whose product is timed
COPIED = {"cpu": 1 << 26, "cuda": 1 << 30}  # bytes


def device_at_hand() -> Hardware:
    """The device that stages would run on: in bfloat16 on a GPU, in float32 on the CPU."""
    here = device()
    if here.type == "cuda":
        properties = torch.cuda.get_device_properties(here)
        name, size = properties.name, properties.total_memory
    else:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        threads = torch.get_num_threads()
        name = f"CPU, {threads} thread{'s' * (threads > 1)}"
    return Hardware(name, round(size / 1e9, 1), *_speeds(here))


def _speeds(here: torch.device) -> tuple[float, float]:
    """FLOP/s of a matrix product, and bytes/s of memory that is read: the best of a few tries."""
    kind = torch.bfloat16 if here.type == "cuda" else torch.float32
    side, size = SIDE[here.type], COPIED[here.type] // kind.itemsize
    a, block = torch.ones(side, side, dtype=kind, device=here), torch.ones(size, dtype=kind, device=here)
    return 2 * side**3 / _seconds(lambda: a @ a, here), 2 * COPIED[here.type] / _seconds(block.clone, here)


def _seconds(work: Callable[[], object], here: torch.device) -> float:
    def once() -> float:
        if here.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        if here.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return min(once() for _ in range(4))


def cost_here(
    found: Architecture, rank: int, here: Hardware, load_in_4bit: bool, gradient_checkpointing: bool
) -> str:
    """One line: memory and time of the same work on ``here``, in the same form, and whether it fits."""
    on_cpu = here.name.startswith("CPU")
    needed = memory(found, rank, load_in_4bit, gradient_checkpointing)
    speed = here
    if on_cpu:  # float32: twice the bytes, in memory and to be read for each token
        needed = {name: round(2 * (gb - OVERHEAD_GB) + CPU_OVERHEAD_GB, 1) for name, gb in needed.items()}
        speed = Hardware(here.name, here.memory, here.speed, here.bandwidth / 2)
    took = hours(found, load_in_4bit, gradient_checkpointing, speed)
    sizes = ", ".join(f"{stage} {value:g} GB" for stage, value in needed.items())
    times = ", ".join(f"{stage} {value:g} h" for stage, value in took.items())
    fits = "fits" if max(needed.values()) < 0.85 * here.memory else "does not fit as it is"
    return (
        f"on this machine ({here.name}, {here.memory:g} GB, {here.speed / 1e12:.2g} TFLOP/s measured): "
        f"{sizes}; {times}; {fits}"
    )
