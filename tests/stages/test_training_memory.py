"""Training in little memory: four bits, checkpointed activations, micro-batches that shrink."""

import os
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback

from tests.support.stand_ins import make_stand_in
from tests.support.training_stages import KillAt, Killed, run_script, stage_context, stage_inputs
from utils.data.prompts import token_ids
from utils.frame.files import UserError, read_json, read_jsonl, write_json
from utils.methods.grpo.settings import GrpoAlgo
from utils.methods.sft.settings import SftAlgo
from utils.models.loading import load_policy
from utils.models.sampling import generate
from utils.models.settings import ModelSection
from utils.training.memory import FOUND

SFT = SftAlgo(max_steps=4, learning_rate=2e-2, warmup_steps=1, per_device_train_batch_size=4)
GRPO = GrpoAlgo(
    num_rollouts=3,
    learning_rate=1e-2,
    warmup_steps=0,
    per_device_train_batch_size=8,
    steps_per_generation=1,
    num_generations=4,
    num_iterations=2,
    beta=0.05,
)
ALGORITHMS = {"03": SFT, "06": GRPO}
METHODS = {"03": "sft", "06": "grpo"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_stand_in("llama3", tmp_path_factory.mktemp("llama3"), scale=0.1, chat=False)


@pytest.fixture(scope="module")
def inputs(model, tmp_path_factory):
    return stage_inputs(tmp_path_factory.mktemp("inputs"), model)


@pytest.fixture(scope="module")
def still(inputs, tmp_path_factory):
    """The same inputs without dropout, whose masks are others where a batch is divided otherwise."""
    folder = tmp_path_factory.mktemp("still") / "checkpoint"
    shutil.copytree(inputs["checkpoint"], folder)
    config = read_json(folder / "adapter_config.json")
    write_json(folder / "adapter_config.json", config | {"lora_dropout": 0.0})
    return inputs | {"checkpoint": folder}


@pytest.fixture
def execute(model, inputs, still, tmp_path, monkeypatch, unrendered):
    """A factory of finished stages: (number, folder, callbacks…; sections' settings) -> context."""

    def run(number, name, *callbacks, resuming=False, batch_size=8, four_bits=False, **training):
        given = inputs if four_bits else still
        ctx = stage_context(tmp_path / name, given, model, ALGORITHMS[number], resuming=resuming)
        config = ctx.config.model
        config = replace(
            config,
            model=replace(config.model, load_in_4bit=four_bits),
            generation=replace(config.generation, batch_size=batch_size, max_new_tokens=12),
            training=replace(config.training, **training),
        )
        ctx.config = replace(ctx.config, model=config)
        init = Trainer.__init__

        def with_callbacks(self, *args, **kwargs):
            init(self, *args, **kwargs)
            for callback in callbacks:
                self.add_callback(callback)

        torch.manual_seed(int.from_bytes(os.urandom(4), "big"))
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "__init__", with_callbacks)
            run_script(number, ctx)
        return ctx

    return run


def adapter(ctx, number):
    return load_file(ctx.out / f"ckpt_{METHODS[number]}" / "final" / "adapter_model.safetensors")


def assert_same_training(number, first, second, tolerance):
    for name, value in adapter(first, number).items():
        torch.testing.assert_close(adapter(second, number)[name], value, rtol=0, atol=tolerance, msg=name)
    logs = [read_jsonl(ctx.out / "logs" / "metrics.jsonl") for ctx in (first, second)]
    for expected, found in zip(*logs, strict=True):
        assert expected.keys() == found.keys()
        for name in expected.keys() & {"loss", "reward", "val_reward", "grad_norm", "kl", "val_length"}:
            assert found[name] == pytest.approx(expected[name], rel=5e-3, abs=1e-4), name


# ----------------------------------------------------------------------------------------------- four bits


@pytest.mark.parametrize("number", ["03", "06"])
def test_qlora_trains(execute, inputs, number):
    """On the CPU, in NF4: a policy that differs from where it started, and that is loaded and sampled."""
    whole = execute(number, "whole", four_bits=True)
    trained = adapter(whole, number)
    assert all(value.dtype == torch.float32 for value in trained.values())
    if number == "06":
        start = load_file(inputs["checkpoint"] / "adapter_model.safetensors")
        assert any(not torch.equal(start[name], value) for name, value in trained.items())
    else:
        assert any(value.any() for name, value in trained.items() if "lora_B" in name)
    policy, tokenizer = load_policy(
        whole.out / f"ckpt_{METHODS[number]}" / "final", ModelSection(load_in_4bit=True)
    )
    assert {type(module).__name__ for module in policy.modules()} >= {"Linear4bit"}
    answer = generate(policy, tokenizer, token_ids(tokenizer, ["cash 2001 10"]), max_new_tokens=4)[0]
    assert 1 <= len(answer.token_ids) <= 4


# ------------------------------------------------------------------------------------------- checkpointing


@pytest.mark.parametrize("number", ["03", "06"])
def test_recomputed_activations_give_the_same_training(execute, number):
    plain = execute(number, "plain")
    assert_same_training(number, plain, execute(number, "again", gradient_checkpointing=True), 2e-4)


# -------------------------------------------------------------------------------------------- batch_size auto


class RunsOut(TrainerCallback):
    """A device that has no memory for more than `fits` sequences, from a step on."""

    def __init__(self, fits: int, step: int):
        self.fits, self.step, self.times = fits, step, 0

    def on_step_begin(self, args, state, control, **kwargs):
        if args.per_device_train_batch_size > self.fits and state.global_step >= self.step:
            self.times += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.parametrize(("number", "fits"), [("03", 1), ("06", 4)])
def test_auto_goes_on_with_smaller_micro_batches_of_the_same_batch(execute, number, fits):
    plain = execute(number, "plain")
    device = RunsOut(fits, step=1)
    ctx = execute(number, "auto", device, batch_size="auto")
    assert device.times == {"03": 2, "06": 1}[number]
    assert ctx.runtime["micro_batch"] == fits
    said = (ctx.out / "stage.log").read_text()
    assert f"out of memory with micro-batches of {2 * fits}: going on with {fits}" in said
    assert_same_training(number, plain, ctx, 2e-4)


def test_what_fits_is_known_to_the_next_execution(execute, tmp_path):
    device = RunsOut(4, step=1)
    with pytest.raises(Killed):
        execute("06", "auto", device, KillAt("on_step_begin", 4), batch_size="auto")
    assert read_json(tmp_path / "auto" / "resume" / FOUND) == {"micro_batch": 4}
    ctx = execute("06", "auto", device, resuming=True, batch_size="auto")
    assert device.times == 1 and ctx.runtime["micro_batch"] == 4


def test_a_damaged_note_of_what_fits_is_found_out_again(execute, tmp_path):
    """A readable change would be another training's micro-batches."""
    device = RunsOut(4, step=1)
    with pytest.raises(Killed):
        execute("06", "auto", device, KillAt("on_step_begin", 4), batch_size="auto")
    (tmp_path / "auto" / "resume" / FOUND).write_text('{"micro_batch": 2}')
    ctx = execute("06", "auto", device, resuming=True, batch_size="auto")
    assert device.times == 2 and ctx.runtime["micro_batch"] == 4
    assert "resume point memory: micro_batch.json has changed" in (ctx.out / "stage.log").read_text()


def test_without_auto_the_error_says_what_to_change(execute):
    with pytest.raises(UserError, match="out of memory with micro-batches of 4: try") as raised:
        execute("03", "plain", RunsOut(2, step=0))
    message = str(raised.value)
    for change in (
        "--batch_size auto",
        "--max_micro_batch 2",
        "--gradient_checkpointing true",
        "--load_in_4bit",
    ):
        assert change in message
    assert "\n" not in message
    with pytest.raises(UserError, match="out of memory with micro-batches of 1: try") as raised:
        execute("03", "auto", RunsOut(0, step=0), batch_size="auto", gradient_checkpointing=True)
    assert "--batch_size" not in str(raised.value) and "checkpointing" not in str(raised.value)


def test_other_errors_pass_through(execute):
    class Breaks(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            raise RuntimeError("a mistake of ours")

    with pytest.raises(RuntimeError, match="a mistake of ours"):
        execute("03", "auto", Breaks(), batch_size="auto")
