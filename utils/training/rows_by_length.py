"""Rows of like length in one micro-batch: less padding, the same optimizer steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from datasets import Dataset
from torch.utils.data import Sampler

from utils.frame.processes import num_processes
from utils.training.epoch_fillers import FilledEpochs


class RowsByLength(Sampler[int]):
    """The order of ``epochs``, each ``step`` rows of it sorted by their ``lengths``, the longest first.

    A step then learns from the rows that it would have learnt from anyway; only their micro-batches differ.
    Fillers (of one token) stay last.
    """

    def __init__(self, epochs: FilledEpochs, lengths: Sequence[int], step: int):
        self.epochs, self.lengths, self.step = epochs, lengths, step

    def __iter__(self) -> Iterator[int]:
        rows = list(self.epochs)
        for start in range(0, len(rows), self.step):
            yield from sorted(rows[start : start + self.step], key=lambda row: -self.lengths[row])

    def __len__(self) -> int:
        return len(self.epochs)

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration that of `epoch`, counted from 0."""
        self.epochs.set_epoch(epoch)


class GroupsByLength:
    """Trainer mixin, before `FillsBatches`: the micro-batches of an optimizer step are of like length.

    Needs a training set with ``input_ids``. Where a step is one micro-batch, nothing is sorted.
    """

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        if self.args.gradient_accumulation_steps == 1:
            return super()._get_train_sampler(train_dataset)
        dataset = self.train_dataset if train_dataset is None else train_dataset
        epochs = FilledEpochs(len(dataset) - self.fillers, self.fillers, self.args.data_seed)
        round_of_all = self.args.per_device_train_batch_size * num_processes()
        step = round_of_all * self.args.gradient_accumulation_steps
        return RowsByLength(epochs, [len(ids) for ids in dataset["input_ids"]], step)
