"""Epochs that several processes share as one process has them: nothing twice, nothing left out.

Accelerate gives processes batches of equal size, and fills up the last ones of an epoch with rows from its
beginning, which would then be trained on twice. Here rows that teach nothing fill them up.
"""

from __future__ import annotations

from collections.abc import Iterator

from accelerate.data_loader import SeedableRandomSampler
from datasets import Dataset
from torch.utils.data import Sampler

from utils.frame.processes import num_processes


def fillers_needed(rows: int, per_device_train_batch_size: int) -> int:
    """How many rows make ``rows`` fill micro-batches of all processes; none where there is one process."""
    return -rows % (per_device_train_batch_size * num_processes()) if num_processes() > 1 else 0


class FilledEpochs(Sampler[int]):
    """The first ``size`` rows in the random order that one process has them in, then the ``fillers``."""

    def __init__(self, size: int, fillers: int, seed: int):
        self.size, self.fillers = size, fillers
        self.rows = SeedableRandomSampler(range(size), data_seed=seed)

    def __iter__(self) -> Iterator[int]:
        yield from self.rows
        yield from range(self.size, self.size + self.fillers)

    def __len__(self) -> int:
        return self.size + self.fillers

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration that of `epoch`, counted from 0."""
        self.rows.set_epoch(epoch)


class FillsBatches:
    """Trainer mixin: the last ``fillers`` rows of the training set fill up the last batches of an epoch under
    several processes, and teach nothing. Put it before the trainer among the base classes.
    """

    fillers = 0

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        if num_processes() == 1:
            return super()._get_train_sampler(train_dataset)
        dataset = self.train_dataset if train_dataset is None else train_dataset
        return FilledEpochs(len(dataset) - self.fillers, self.fillers, self.args.data_seed)
