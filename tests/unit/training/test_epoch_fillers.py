"""Sharing an epoch between processes: the order of one process, filled up with rows that teach nothing."""

from types import SimpleNamespace

import pytest
from torch.utils.data import DataLoader, RandomSampler

from utils.training.epoch_fillers import FilledEpochs, FillsBatches, fillers_needed


@pytest.mark.parametrize("epoch", [0, 2])
def test_filled_epochs_have_the_order_of_one_process(monkeypatch, epoch):
    """Against what Accelerate makes of Transformers' sampler in one process."""
    from accelerate.data_loader import prepare_data_loader

    rows = list(range(10))
    loader = DataLoader(rows, batch_size=2, sampler=RandomSampler(rows))
    alone = prepare_data_loader(loader, use_seedable_sampler=True, data_seed=7, put_on_device=False)
    alone.set_epoch(epoch)
    expected = [int(row) for batch in alone for row in batch]

    monkeypatch.setenv("WORLD_SIZE", "2")
    fillers = fillers_needed(10, 4)
    assert fillers == 6
    trainer = FillsBatches()
    trainer.fillers, trainer.train_dataset = fillers, range(16)
    trainer.args = SimpleNamespace(data_seed=7)
    sampler = trainer._get_train_sampler()
    assert isinstance(sampler, FilledEpochs) and len(sampler) == 16
    sampler.set_epoch(epoch)
    assert list(sampler) == [*expected, *range(10, 16)]


def test_one_process_fills_nothing():
    assert fillers_needed(10, 4) == 0
