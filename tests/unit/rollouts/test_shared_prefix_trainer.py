"""The SharedPrefix mixin against stock TRL: log-probabilities, whole trainings, micro-batches."""

import importlib.metadata
import logging
import random
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.trainer.utils import RepeatSampler

from tests.support.group_stub import TINY_TRAINING
from tests.support.stand_ins import make_padded_stand_in
from utils.frame.files import UserError
from utils.models.trl_version import check_trl_version
from utils.rollouts.batches import share_batches, updates_per_rollout
from utils.rollouts.shared_prefix_trainer import (
    EpochSampler,
    SharedPrefix,
)

PROMPTS = ["2+2=", "a longer prompt: 7*6=", "x", "why?", "one more"]


class SharedGRPO(SharedPrefix, GRPOTrainer):
    pass


class SharedRLOO(SharedPrefix, RLOOTrainer):
    pass


@pytest.fixture(autouse=True)
def quiet():
    transformers_logging.disable_progress_bar()
    yield
    transformers_logging.enable_progress_bar()


@pytest.fixture
def make(tiny_models, tmp_path):
    """Return a factory of trainers on tiny models whose policy has moved away from its reference."""

    def build(kind, architecture="llama", lora=False, folder=None, **changes):
        settings = {
            **TINY_TRAINING,
            "output_dir": str(tmp_path / "out"),
            "per_device_train_batch_size": 8,
            "num_generations": 4,
            "steps_per_generation": 1,
            "num_iterations": 2,
            "max_steps": 4,
            "logging_steps": 1,
            "beta": 0.1,
            "temperature": 0.9,
            **changes,
        }
        config = RLOOConfig if issubclass(kind, RLOOTrainer) else GRPOConfig
        folder = folder or tiny_models(architecture)
        model = AutoModelForCausalLM.from_pretrained(folder)
        adapter = None
        if lora:
            adapter = LoraConfig(
                r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"
            )
        torch.manual_seed(0)
        trainer = kind(
            model=model,
            reward_funcs=reward,
            args=config(**settings),
            train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
            processing_class=AutoTokenizer.from_pretrained(folder),
            peft_config=adapter,
        )
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                if parameter.requires_grad:
                    parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
        return trainer

    return build


def reward(completion_ids, **_):
    return [len(ids) % 3 + ids[0] / 64 for ids in completion_ids]


def feed(trainer) -> None:
    """Replace sampling by completions drawn from the step and the row, of one to six tokens."""

    def completions(prompt_ids, *_):
        draw = random.Random(trainer.state.global_step)
        rows = [[draw.randrange(2, 90) for _ in range(draw.choice([1, 1, 3, 6]))] for _ in prompt_ids]
        return (rows, None) if isinstance(trainer, GRPOTrainer) else rows

    trainer._generate_single_turn = completions


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters()}


def logged(trainer) -> list[dict]:
    skipped = ("time", "per_second", "total_flos", "profiling")
    return [
        {name: value for name, value in row.items() if not any(part in name for part in skipped)}
        for row in trainer.state.log_history
    ]


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2"])
def test_log_probs_entropies_and_gradients_equal_stock(make, architecture, lora):
    """GPT-2 included: like TRL, the mixin's scoring counts left padding in its absolute positions."""
    prompt_mask = torch.tensor([[0, 0, 1, 1, 1]] * 2 + [[1] * 5] * 3 + [[0, 0, 0, 0, 1]])
    completion_mask = (torch.arange(4) < torch.tensor([4, 1, 3, 0, 2, 4])[:, None]).long()
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(3, 200, (3, 5), generator=generator)[[0, 0, 1, 1, 1, 2]]
    ids = torch.cat([prompts, torch.randint(3, 200, (6, 4), generator=generator)], dim=1)
    mask = torch.cat([prompt_mask, completion_mask], dim=1)
    order = torch.tensor([3, 0, 5, 2, 1, 4])
    ids, mask = (ids * mask)[order], mask[order]
    weight = torch.randn(2, 6, 4, generator=generator)
    results = []
    for kind in (GRPOTrainer, SharedGRPO):
        trainer = make(kind, architecture, lora)
        log_probs, entropies, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model, ids, mask, 4, batch_size=4, compute_entropy=True
        )
        (weight[0] * log_probs + weight[1] * entropies).sum().backward()
        gradient = {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}
        results.append((log_probs.detach(), entropies.detach(), gradient))
    stock, shared = results
    torch.testing.assert_close(shared[0], stock[0], rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(shared[1], stock[1], rtol=1e-5, atol=2e-5)
    assert shared[2].keys() == stock[2].keys()
    for name, value in stock[2].items():
        scale = float(value.abs().max())
        torch.testing.assert_close(shared[2][name], value, rtol=1e-4, atol=1e-5 * scale, msg=name)


@pytest.mark.parametrize(
    ("stock", "shared", "architecture", "lora", "micro_batches"),
    [
        (GRPOTrainer, SharedGRPO, "llama", False, 2),
        (GRPOTrainer, SharedGRPO, "gpt2", True, 1),
        (RLOOTrainer, SharedRLOO, "qwen2", False, 1),
    ],
    ids=["grpo", "grpo-lora", "rloo"],
)
def test_a_training_equals_stock_on_the_same_completions(
    make, stock, shared, architecture, lora, micro_batches
):
    """Four updates on two rollouts, each used twice, so that the ratio to the old policy matters and clips.

    An update spans a whole rollout, so it does not depend on which rows share a micro-batch; those metrics do
    that TRL averages over micro-batches.
    """
    split = {"steps_per_generation": micro_batches, "gradient_accumulation_steps": micro_batches}
    trained = []
    for kind in (stock, shared):
        trainer = make(kind, architecture, lora, **split)
        feed(trainer)
        trainer.train()
        trained.append(trainer)
    for expected, found in zip(*(logged(trainer) for trainer in trained), strict=True):
        assert expected.keys() == found.keys()
        whole = expected.keys() if micro_batches == 1 else {"loss", "reward", "reward_std", "grad_norm"}
        for name in whole & expected.keys():
            assert found[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-5), name
    assert any(row.get("clip_ratio/region_mean", 0) > 0 for row in logged(trained[1]))
    expected, found = (weights(trainer) for trainer in trained)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=2e-4, msg=name)


def test_micro_batches_hold_whole_groups(make):
    trainer = make(SharedGRPO, per_device_train_batch_size=4, steps_per_generation=4)
    batch = [{"prompt": prompt} for prompt in PROMPTS[:4] for _ in range(4)]
    orders = []
    for step in range(3):
        trainer.state.global_step = step
        trainer._buffered_inputs = None
        trainer.model.train()
        trainer._prepare_inputs(batch)
        prompts = [micro_batch["prompt_ids"] for micro_batch in trainer._buffered_inputs]
        assert all((rows == rows[0]).all() for rows in prompts)
        assert all(micro_batch["num_items_in_batch"].ndim == 0 for micro_batch in trainer._buffered_inputs)
        orders.append([tuple(rows[0].tolist()) for rows in prompts])
        assert len(set(orders[-1])) == 4
    assert len({tuple(order) for order in orders}) > 1  # shuffled anew


def test_sampling_depends_on_the_step_and_not_on_the_global_generators(make):
    trainer = make(SharedGRPO)
    ids = trainer.processing_class(PROMPTS[:2] * 4)["input_ids"]

    def sampled(step: int):
        trainer.state.global_step = step
        return trainer._generate_single_turn(ids, None, {}, 4)[0]

    trainer.model.train()
    first = sampled(0)
    torch.manual_seed(99)
    assert sampled(3) != first
    assert sampled(0) == first
    assert sampled(0) != first  # a second rollout in the same step
    assert trainer.model.training
    assert len({tuple(row) for row in first}) > 2 and all(1 <= len(row) <= 6 for row in first)


@pytest.mark.parametrize("changes", [{}, {"repetition_penalty": 1.2}], ids=["shared", "stock"])
@pytest.mark.parametrize("kind", [SharedGRPO, SharedRLOO])
def test_no_token_beyond_the_tokenizer_is_sampled(make, tmp_path, caplog, kind, changes):
    trainer = make(kind, folder=make_padded_stand_in(tmp_path / "padded"), **changes)
    ids = trainer.processing_class(PROMPTS)["input_ids"]
    with torch.no_grad():
        likeliest = trainer.model(torch.tensor([ids[0]])).logits[0, -1].argmax()
    assert likeliest >= len(trainer.processing_class)
    if kind is SharedGRPO:
        completions, _ = trainer._generate_single_turn(ids, None, {}, 1)
    else:
        completions = trainer._generate_single_turn(ids, None, {})
    assert max(map(max, completions)) < len(trainer.processing_class)
    assert len(warnings_of(caplog)) == len(changes)


# ----------------------------------------------------------------------------------------------- fallback


def warnings_of(caplog) -> list[str]:
    return [record.message for record in caplog.records if "without shared prefixes" in record.message]


def test_gradient_checkpointing_falls_back_and_says_so_once(make, caplog):
    caplog.set_level(logging.WARNING)
    trained = []
    for kind in (GRPOTrainer, SharedGRPO):
        trainer = make(kind, gradient_checkpointing=True)
        feed(trainer)
        trainer.train()
        trained.append(weights(trainer))
    assert warnings_of(caplog) == ["scoring without shared prefixes: gradient checkpointing drops the cache"]
    for name, value in trained[0].items():
        torch.testing.assert_close(trained[1][name], value, rtol=0, atol=2e-4)


def test_other_generation_settings_fall_back(make, caplog):
    trainer = make(SharedGRPO, repetition_penalty=1.2)
    ids = trainer.processing_class(PROMPTS[:2])["input_ids"]
    for _ in range(2):
        completions, _ = trainer._generate_single_turn(ids, None, {}, 1)
    assert len(completions) == 2 and len(warnings_of(caplog)) == 1
    assert "repetition_penalty" in warnings_of(caplog)[0]


def test_multimodal_inputs_and_sharded_parameters_fall_back(make):
    trainer = make(SharedGRPO)
    assert trainer._scoring_obstacle(trainer.model, False, {"pixel_values": None}) is None
    assert "pixel_values" in trainer._scoring_obstacle(trainer.model, False, {"pixel_values": torch.ones(1)})
    assert "multimodal" in trainer._sampling_obstacle([["image"]], {})
    assert "router" in trainer._scoring_obstacle(trainer.model, True, {})
    trainer.is_fsdp_enabled = True
    assert "sharded" in trainer._sampling_obstacle(None, {})


def test_another_trl_is_refused(monkeypatch):
    check_trl_version()
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.17.2")
    with pytest.raises(UserError, match=r"^TRL 1\.17\.2 is installed but .* TRL 1\.16\.x: .*$") as caught:
        check_trl_version()
    assert "\n" not in str(caught.value)


# --------------------------------------------------------------------------------------- resume points


@pytest.mark.parametrize(
    ("per_generation", "iterations", "accumulation", "updates"),
    [(1, 1, 1, 1), (1, 2, 1, 2), (2, 2, 1, 4), (2, 2, 2, 2), (1, 1, 4, 1), (4, 1, 2, 2)],
)
def test_updates_per_rollout(per_generation, iterations, accumulation, updates):
    class Args:
        steps_per_generation = per_generation
        num_iterations = iterations
        gradient_accumulation_steps = accumulation

    assert updates_per_rollout(Args) == updates


def test_rollouts_that_begin_inside_an_update_are_refused(make):
    with pytest.raises(
        UserError, match="gradient_accumulation_steps is 4, and a rollout serves 6 micro-batches"
    ):
        make(SharedGRPO, steps_per_generation=3, gradient_accumulation_steps=4)


def test_checkpoints_inside_a_rollout_are_refused(make):
    message = "save_steps is 3 but a rollout lasts 4 optimizer steps .* set save_steps to a multiple of 4"
    with pytest.raises(UserError, match=message):
        make(SharedGRPO, steps_per_generation=2, save_strategy="steps", save_steps=3)
    make(SharedGRPO, steps_per_generation=2, save_strategy="steps", save_steps=8)


def test_epoch_sampler_repeats_trls_order_and_can_start_anywhere():
    settings = {"mini_repeat_count": 2, "batch_size": 3, "repeat_count": 2, "shuffle": True, "seed": 7}
    stock, ours = (kind(list("abcdefgh"), **settings) for kind in (RepeatSampler, EpochSampler))
    epochs = [list(stock) for _ in range(3)]
    for epoch in (2, 0, 1):
        ours.set_epoch(epoch)
        assert list(ours) == epochs[epoch]


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
