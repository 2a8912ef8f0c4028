"""How the processes of a stage, and a device's memory, divide a batch.

The algorithm tier describes the whole batch of the method: the same command trains in the same way on one
device or on several. What changes is who computes which rows of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from utils.frame.files import UserError
from utils.frame.processes import num_processes


@dataclass(frozen=True)
class Batches:
    """One process's part: sequences per micro-batch, micro-batches per optimizer step and per rollout.

    Processes times rows times ``gradient_accumulation_steps`` is the whole optimizer step, times
    ``steps_per_generation`` the whole rollout. Rows come in rounds: of the whole batch in order, the first
    ``per_device_train_batch_size`` go to the first process, the next to the second, and so on.
    """

    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    steps_per_generation: int = 1


def share_batches(
    rows: int,
    gradient_accumulation_steps: int,
    steps_per_generation: int | None = None,
    *,
    group: int = 1,
    largest: int | None = None,
    whole_micro_batches: bool = True,
    processes: int | None = None,
) -> Batches:
    """Each process's part of micro-batches of ``rows`` sequences.

    The processes share the micro-batches of an optimizer step (and of a rollout) first, and the rows of a
    micro-batch where there are fewer micro-batches than processes; not ``whole_micro_batches``: the rows at
    once. What exceeds ``largest`` is split into more micro-batches. ``group``: sequences that stay in one
    process, the completions of a prompt.

    Raises UserError where the processes do not divide the batch evenly, or the prompts of a rollout.
    """
    count = num_processes() if processes is None else processes
    accumulation, steps = gradient_accumulation_steps, steps_per_generation or gradient_accumulation_steps
    shared = math.gcd(accumulation, steps, count) if whole_micro_batches else 1
    if rows * shared % count:
        raise UserError(
            f"{count} processes cannot share micro-batches of {rows} sequences, {accumulation} to an "
            f"optimizer step, evenly: make per_device_train_batch_size (05: rollout_batch_size) or "
            f"gradient_accumulation_steps a multiple of {count}, or use another --num_processes"
        )
    if steps_per_generation and rows * steps // group % count:
        raise UserError(
            f"{count} processes cannot share the {rows * steps // group} prompts of a rollout evenly: make "
            f"rollouts larger, or use another --num_processes"
        )
    own, accumulation, steps = rows * shared // count, accumulation // shared, steps // shared
    pieces = _pieces(own, largest)
    return Batches(own // pieces, accumulation * pieces, steps * pieces)


def _pieces(rows: int, largest: int | None) -> int:
    """The fewest equal pieces of ``rows`` that are no larger than ``largest``."""
    if largest is None or rows <= largest:
        return 1
    return next(pieces for pieces in range(2, rows + 1) if rows % pieces == 0 and rows // pieces <= largest)


def updates_per_rollout(args) -> int:
    """Return how many optimizer steps a rollout lasts; 1 where a step takes several rollouts.

    `args` is a GRPOConfig or RLOOConfig, or our settings of one: a rollout serves
    `steps_per_generation * num_iterations` micro-batches, `gradient_accumulation_steps` to a step.

    Raises UserError where neither number divides the other: rollouts would then begin inside steps.
    """
    micro_batches = args.steps_per_generation * args.num_iterations
    accumulation = args.gradient_accumulation_steps
    if micro_batches % accumulation and accumulation % micro_batches:
        raise UserError(
            f"gradient_accumulation_steps is {accumulation}, and a rollout serves "
            f"{micro_batches} micro-batches (steps_per_generation {args.steps_per_generation} "
            f"x num_iterations {args.num_iterations}): "
            "one must divide the other, so that rollouts begin with an optimizer step"
        )
    return max(1, micro_batches // accumulation)
