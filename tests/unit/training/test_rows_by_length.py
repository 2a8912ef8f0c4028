"""Rows of like length together: the seed's order and steps, sorted within them."""

import random
from types import SimpleNamespace

import pytest
from datasets import Dataset

from utils.training.epoch_fillers import FilledEpochs, FillsBatches
from utils.training.rows_by_length import GroupsByLength, RowsByLength

LENGTHS = [random.Random(number).randrange(1, 9) for number in range(23)]


class Plain:
    def _get_train_sampler(self, train_dataset=None):
        return "stock"


class Trainer(GroupsByLength, FillsBatches, Plain):
    def __init__(self, accumulation, fillers=0):
        rows = [[7] * length for length in LENGTHS] + [[1]] * fillers
        self.train_dataset, self.fillers = Dataset.from_dict({"input_ids": rows}), fillers
        self.args = SimpleNamespace(
            per_device_train_batch_size=2, gradient_accumulation_steps=accumulation, data_seed=5
        )


@pytest.mark.parametrize("epoch", [0, 3])
def test_a_step_has_the_rows_it_would_have_had(epoch):
    found, plain = Trainer(accumulation=3)._get_train_sampler(), FilledEpochs(len(LENGTHS), 0, 5)
    assert isinstance(found, RowsByLength) and len(found) == len(LENGTHS)
    for sampler in (found, plain):
        sampler.set_epoch(epoch)
    order, before = list(found), list(plain)
    assert order != before
    for start in range(0, len(order), 6):
        step = order[start : start + 6]
        assert sorted(step) == sorted(before[start : start + 6])
        lengths = [LENGTHS[row] for row in step]
        assert lengths == sorted(lengths, reverse=True)
    found.set_epoch(epoch)
    assert list(found) == order


def test_fillers_stay_last(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert list(Trainer(accumulation=2, fillers=1)._get_train_sampler())[-1] == len(LENGTHS)


def test_a_step_of_one_micro_batch_is_left_as_it_is():
    assert Trainer(accumulation=1)._get_train_sampler() == "stock"
