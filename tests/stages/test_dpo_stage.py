"""DPO through the stage: the reference, what is logged, checkpoints, and what the seed decides."""

import math
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from transformers import TrainerCallback

from tests.support.dpo_stage import DPO, dpo_contexts
from tests.support.training_stages import KillAt, Killed
from utils.frame.files import read_jsonl
from utils.methods.dpo.build import build_dpo_trainer
from utils.methods.dpo.trainer import PairTrainer
from utils.models.loading import load_policy, save_policy
from utils.models.settings import (
    ModelSection,
    TrainingSection,
)
from utils.training.run import train_stage


@pytest.fixture
def context(tiny_models, files, tmp_path, unrendered):
    """A factory of stage contexts that write below tmp_path/<name>."""
    tokenizer = load_policy(tiny_models("llama"), ModelSection())[1]
    return dpo_contexts(tmp_path, files, tiny_models("llama"), tokenizer)


def train(ctx, *callbacks):
    """The whole of the stage, below ``ctx.out``; returns the trainer."""
    built = []

    def build(records, spec):
        trainer, tokenizer = build_dpo_trainer(ctx, records, spec)
        for callback in callbacks:
            trainer.add_callback(callback)
        built.append(trainer)
        return trainer, tokenizer

    train_stage(ctx, "dpo", build, {"loss": ["loss", "val_preference_loss"], "KL": ["val_kl"]})
    return built[0]


def test_the_reference_is_computed_once_and_survives_an_interruption(context, monkeypatch):
    """A resumed stage reads what the first one computed; it never asks the model again."""
    calls = []
    original = PairTrainer.compute_ref_log_probs
    monkeypatch.setattr(
        PairTrainer,
        "compute_ref_log_probs",
        lambda self, *args: calls.append(self.state.global_step) or original(self, *args),
    )

    class Built(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            calls.append("training")

    ctx = context()
    with pytest.raises(Killed):
        train(ctx, Built(), KillAt("on_step_end", 5))
    assert calls == [0, 0, 0, "training"]  # two batches of pairs, one of those held out
    first, _ = build_dpo_trainer(ctx)
    kept = [first.train_dataset[name] for name in ("ref_chosen_logps", "ref_rejected_logps")]
    train(context(resuming=True), Built())
    assert calls == [0, 0, 0, "training", "training"]
    again, _ = build_dpo_trainer(context("fresh"))
    assert kept == [again.train_dataset[name] for name in ("ref_chosen_logps", "ref_rejected_logps")]


@pytest.mark.parametrize("place", [0, -1], ids=["header", "number"])
def test_a_damaged_reference_is_computed_anew(context, place):
    ctx = context()
    columns = ("ref_chosen_logps", "ref_rejected_logps")
    expected = [build_dpo_trainer(ctx)[0].train_dataset[name] for name in columns]
    path = ctx.out / "resume" / "reference_train" / "log_probs.safetensors"
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << 5
    path.write_bytes(data)
    assert [build_dpo_trainer(ctx)[0].train_dataset[name] for name in columns] == expected
    assert path.read_bytes() != bytes(data)


def test_the_log_has_preferences_and_distance_at_every_validation(context):
    ctx = context(training=TrainingSection(save_steps=2, logging_steps=1))
    trainer = train(ctx)
    rows = read_jsonl(ctx.out / "logs" / "metrics.jsonl")
    validated = [row for row in rows if "val_kl" in row]
    assert [row["step"] for row in validated] == [0, 3, 6, 7]
    assert [row["step"] for row in rows if "val_reward" in row] == [0, 3, 6, 7]
    start, end = validated[0], validated[-1]
    # Before the first step the policy is the reference.
    assert start["val_preference_accuracy"] == 0.5
    assert start["val_preference_loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert abs(start["val_preference_margin"]) + abs(start["val_kl"]) + abs(start["val_kl_sequence"]) < 1e-5
    assert end["val_kl"] > 1e-3
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2, 3, 4, 5, 6, 7]
    assert {
        "rewards/chosen",
        "rewards/rejected",
        "rewards/margins",
        "rewards/accuracies",
        "grad_norm",
    } <= set(steps[0])
    assert steps[-1]["loss"] < steps[0]["loss"]
    # Seven steps of three pairs, in epochs of six: every pair three times, three of them a fourth time.
    lengths = [len(r["chosen_ids"]) + len(r["rejected_ids"]) for r in trainer.train_dataset]
    assert 3 * sum(lengths) < trainer.cost.trained_tokens < 4 * sum(lengths)
    assert ctx.metrics["cost"]["trained_tokens"] == trainer.cost.trained_tokens
    assert ctx.metrics["cost"]["sampled_completions"] == 0
    assert not any("sampled_completions" in row for row in rows)
    assert ctx.runtime["seconds_by_phase"]["scoring"] >= 0


def test_validations_and_their_samples_can_be_left_out(context):
    """Training is the same without them; without any validation the last checkpoint is the best."""
    trained = {}
    for name, items, kl in (("plain", 3, True), ("no_kl", 3, False), ("none", 0, True)):
        ctx = context(name, algo=replace(DPO, validation_kl=kl))
        ctx.config.model.validation.num_items = items
        train(ctx)
        rows = read_jsonl(ctx.out / "logs" / "metrics.jsonl")
        trained[name] = [row for row in rows if "loss" in row]
        assert any("val_kl" in row for row in rows) == (name == "plain")
        assert any("val_preference_accuracy" in row for row in rows) == (items > 0)
        assert ("val_kl_sequence" in ctx.metrics) == (name == "plain")
        if not items:
            assert ctx.metrics["best_step"] == ctx.metrics["steps"] > 0
            weights = [
                (ctx.out / "ckpt_dpo" / point / "adapter_model.safetensors") for point in ("best", "final")
            ]
            assert weights[0].read_bytes() == weights[1].read_bytes()
            assert not (ctx.out / "valid_samples").exists()
    assert trained["plain"] == trained["no_kl"] == trained["none"]


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_checkpoints_are_plain_policies(context, tiny_models, tmp_path, lora):
    """The adapter alone, or all weights; never the reference, which full training keeps as a second model."""
    checkpoint = None
    if not lora:
        model, tokenizer = load_policy(tiny_models("llama"), ModelSection(), trainable=True)
        save_policy(model, tokenizer, checkpoint := tmp_path / "full")
    ctx = context(checkpoint=checkpoint, algo=replace(DPO, max_steps=2))
    trainer = train(ctx)
    assert (trainer.ref_model is None) == lora
    folder = ctx.out / "ckpt_dpo" / "final"
    assert {path.suffix for path in folder.iterdir() if path.is_file()} <= {".safetensors", ".json", ".jinja"}
    assert not [path for path in folder.rglob("*") if "ref" in path.name]
    loaded, _ = load_policy(folder, ModelSection())
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, trainer.model.eval()(ids).logits, rtol=1e-5, atol=1e-5)
    last = [row for row in read_jsonl(ctx.out / "logs" / "metrics.jsonl") if "val_kl" in row][-1]
    assert last["val_kl"] > 0
    assert isinstance(trainer.model, PeftModel) == lora


def test_the_seed_decides(context):
    """It decides the order of the pairs and what dropout leaves out: other weights from the same start."""
    weights = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        ctx = context(name, replace(DPO, max_steps=2), seed=seed)
        train(ctx)
        weights.append((ctx.out / "ckpt_dpo" / "final" / "adapter_model.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]
