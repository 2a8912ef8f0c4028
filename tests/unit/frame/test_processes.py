"""Sharing a batch, an epoch and statistics between processes, as far as one process can tell."""

import os
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from torch.utils.data import DataLoader, RandomSampler

from utils.frame import processes
from utils.frame.files import REPO_ROOT, UserError
from utils.frame.stage import Stage, execute
from utils.rewards.normalisers import NAMES, SCOPES, Normaliser
from utils.rollouts.batches import Batches, share_batches
from utils.rollouts.shared_prefix_trainer import SharedPrefix
from utils.training.filled_batches import FilledEpochs, FillsBatches, fillers_needed

CONFIGS = sorted((REPO_ROOT / "configs" / "accelerate").glob("*.yaml"))


@pytest.mark.parametrize(
    ("whole", "processes", "largest", "expected"),
    [
        ((64, 1, 2), 1, None, Batches(64, 1, 2)),
        ((64, 1, 2), 2, None, Batches(32, 1, 2)),  # one micro-batch a step: its rows
        ((64, 4, 4), 2, None, Batches(64, 2, 2)),  # micro-batches first
        ((64, 2, 4), 4, None, Batches(32, 1, 2)),  # then rows
        ((6, 3, 6), 2, None, Batches(3, 3, 6)),  # 2 does not divide 3 micro-batches, but their rows
        ((64, 1, 2), 2, 8, Batches(8, 4, 8)),
        ((6, 1, 1), 1, 4, Batches(3, 2, 2)),  # 4 does not divide 6
    ],
)
def test_the_whole_batch_stays(whole, processes, largest, expected):
    """Rows and rollouts over all processes are those of one."""
    rows, accumulation, steps = whole
    found = share_batches(rows, accumulation, steps, group=2, largest=largest, processes=processes)
    assert found == expected
    own = found.per_device_train_batch_size * processes
    assert own * found.gradient_accumulation_steps == rows * accumulation
    assert own * found.steps_per_generation == rows * steps


def test_what_cannot_be_shared_evenly_is_refused():
    with pytest.raises(UserError, match=r"3 processes cannot share micro-batches of 32 sequences"):
        share_batches(32, 1, processes=3)
    with pytest.raises(UserError, match=r"4 processes cannot share the 2 prompts of a rollout"):
        share_batches(8, 1, 2, group=8, processes=4)


@pytest.mark.parametrize("processes", [2, 3])
def test_rounds_cover_every_optimizer_step(processes):
    """The rows that the processes take of a rollout in its order are, step by step, those of one process."""
    whole = torch.arange(24).view(4, 6)  # optimizer steps, rows
    parts = []
    for index in range(processes):
        part = share_batches(3, 2, 8, processes=processes)
        accelerator = SimpleNamespace(num_processes=processes, process_index=index)
        trainer = SimpleNamespace(accelerator=accelerator, args=part)
        own = SharedPrefix._own_rows(trainer, whole.flatten())
        parts.append(own.view(4, -1))
    assert torch.equal(torch.cat(parts, dim=1).sort(dim=1).values, whole)


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


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("name", NAMES)
def test_parts_are_normalised_as_the_whole(name, scope):
    """Each process has half of the rows, in order; the second has no unmasked entry in one rollout."""
    generator = torch.Generator().manual_seed(0)
    alone, parts = Normaliser(name, scope), [Normaliser(name, scope) for _ in range(2)]
    for rollout in range(3):
        values = torch.randn((6, 4), generator=generator)
        mask = torch.rand((6, 4), generator=generator) < 0.6
        mask[3:] &= rollout != 1
        expected = alone(values, mask)
        entries = [values[rows][mask[rows]].double() for rows in (slice(0, 3), slice(3, 6))]
        halves = [
            part(values[rows], mask[rows], True, lambda _, entries=entries: entries)
            for part, rows in zip(parts, (slice(0, 3), slice(3, 6)), strict=True)
        ]
        assert torch.equal(torch.cat(halves), expected)
    assert parts[0].state == parts[1].state == alone.state


def test_a_stage_of_one_process_refuses_several(monkeypatch, capsys):
    """In one line, from the main process."""
    stage = Stage("01", "01_preprocessing", "", "", "")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, lines in (("1", 0), ("0", 1)):
        monkeypatch.setenv("RANK", rank)
        assert execute(stage, lambda ctx: pytest.fail("ran"), []) == 2
        errors = capsys.readouterr().err.splitlines()
        assert len(errors) == lines
    assert "runs in one process" in errors[0]


def test_without_a_launcher_there_is_one_process():
    assert "WORLD_SIZE" not in os.environ
    assert processes.num_processes() == 1 and processes.is_main_process()
    assert processes.share([1, 2, 3]) == processes.merge_shares([1, 2, 3]) == [1, 2, 3]
    assert processes.from_main("said") == "said" and processes.gather_lists([1]) == [[1]]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_knows_every_key(path):
    """Its own reader refuses unknown keys of the file; those of a section become options of its launcher."""
    config = load_config_from_file(str(path))
    assert config.num_machines == 1 and config.main_process_port == 0
    known = {action.dest for action in launch_command_parser()._actions}
    for section in ("fsdp_config", "deepspeed_config"):
        assert set(yaml.safe_load(path.read_text()).get(section, {})) <= known
    assert len(CONFIGS) == 4
