"""How many completions are sampled at once: what was asked for, or what fits into memory."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from utils.frame.files import UserError
from utils.models.settings import GenerationSection

T = TypeVar("T")

logger = logging.getLogger(__name__)


def ran_out(error: BaseException) -> bool:
    """Whether memory ran out: the device's, or the CPU's as torch or Python report it."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or should_reduce_batch_size(error)


class Room:
    """Runs what is sampled together in as few parts as fit into memory.

    Under ``generation.batch_size: auto`` a part that does not fit is halved, and later ones are no larger.
    The same completions come out, up to rounding: their noise is drawn for all of them before.
    """

    def __init__(self, generation: GenerationSection):
        self.auto = generation.batch_size == "auto"
        self.new_tokens = generation.max_new_tokens
        self.rows: int | None = None  # at most so many at once; None: all of them

    def run(self, rows: int, part: Callable[[slice], T]) -> list[T]:
        """``part`` of consecutive slices of ``rows`` rows, in order.

        Raises UserError where memory runs out for a single row, or the batch size is not ``auto``.
        """
        found: list[T] = []
        start = 0
        while start < rows:
            size = min(rows - start, self.rows or rows)
            try:
                found.append(part(slice(start, start + size)))
                start += size
                continue
            except Exception as error:
                if not ran_out(error):
                    raise
                if not self.auto or size == 1:
                    raise UserError(self._advice(size)) from None
            # Outside the handler, whose error holds on to the tensors of the pass that failed.
            clear_device_cache(garbage_collection=True)
            self.rows = size // 2
            logger.warning("out of memory sampling %d completions at once: %d from here on", size, self.rows)
        return found

    def _advice(self, size: int) -> str:
        smaller = "" if size == 1 else f"--batch_size auto, --generation.batch_size {size // 2}, "
        return (
            f"out of memory sampling {size} completions at once: try, one after the other, {smaller}a lower "
            f"generation.max_new_tokens ({self.new_tokens}), --load_in_4bit true, or a smaller model"
        )
