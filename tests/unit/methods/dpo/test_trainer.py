"""DPO on a tiny model: tokens, losses and distances against plain NumPy and stock TRL."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from tests.support.dpo_stage import DPO, dpo_contexts, pairs
from tests.support.records import RECORDS
from tests.support.training_stages import model_config
from utils.frame.files import UserError, write_jsonl
from utils.frame.typed_settings import check
from utils.methods.dpo import trainer as dpo_trainer
from utils.methods.dpo.build import PreferenceValidation, build_dpo_trainer, tokenize_pairs
from utils.models.loading import load_policy
from utils.models.settings import (
    GenerationSection,
    ModelSection,
    TrainingSection,
)
from utils.rewards.spec import load_reward_spec
from utils.training import run as running


@pytest.fixture(scope="module")
def tokenizer(tiny_models):
    return load_policy(tiny_models("llama"), ModelSection())[1]


@pytest.fixture
def context(tiny_models, files, tokenizer, tmp_path, unrendered):
    """A factory of stage contexts that write below tmp_path/<name>."""
    return dpo_contexts(tmp_path, files, tiny_models("llama"), tokenizer)


@pytest.fixture
def apart(context):
    """A trainer whose policy has left the reference behind: its adapter has been moved at random."""
    trainer, _ = build_dpo_trainer(context())
    move(trainer)
    return trainer


def move(trainer):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if parameter.requires_grad:
                assert ".ref." not in name
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def plain_log_probs(model, prompt: list[int], completion: list[int]) -> np.ndarray:
    """Per-token log-probabilities of one completion, by one forward pass of the sequence alone, [C]."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + completion])).logits[0].double()
    rows = logits[len(prompt) - 1 : len(prompt) + len(completion) - 1].numpy()
    rows = rows - rows.max(1, keepdims=True)
    log_probs = rows - np.log(np.exp(rows).sum(1, keepdims=True))
    return log_probs[np.arange(len(completion)), completion]


@pytest.fixture
def policies(apart, files):
    """The policy of `apart`, and the SFT policy loaded anew, both in evaluation mode."""
    return apart.model.eval(), load_policy(files["checkpoint"], ModelSection())[0]


# -------------------------------------------------------------------------------------------- tokens


def test_pairs_are_tokenised_apart_as_sampling_sees_them(context, tokenizer):
    trainer, _ = build_dpo_trainer(context())
    for row, source in zip(trainer.train_dataset, pairs(tokenizer), strict=False):
        assert row["prompt_ids"] == tokenizer(source["prompt"], add_special_tokens=False)["input_ids"]
        assert row["chosen_ids"] == source["chosen_ids"]
        assert row["chosen_ids"][-1] == tokenizer.eos_token_id
        assert tokenizer.decode(row["rejected_ids"]) == source["rejected"]
    # Cut-off completions get no end that they did not have.
    assert [ids[-1] == tokenizer.eos_token_id for ids in trainer.train_dataset["rejected_ids"]] == [
        True,
        True,
        True,
        False,
        False,
        True,
    ]


def test_a_tokenizer_that_adds_tokens_of_its_own_does_not(tiny_models, tokenizer):
    """What a tokenizer opens every text with would come between prompt and completion."""

    class Opening:
        def __call__(self, texts, add_special_tokens=True):
            extra = [9] if add_special_tokens else []
            return {"input_ids": [extra + tokenizer(text)["input_ids"] for text in texts]}

    rows = pairs(tokenizer)
    config = model_config(tiny_models("llama"))
    assert tokenize_pairs(rows, Opening(), config)[:] == tokenize_pairs(rows, tokenizer, config)[:]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"model": {"max_prompt_length": 40}},
            r"prompt of pair train-1/0 has \d+ tokens, model.max_prompt_l",
        ),
        (
            {"generation": {"max_new_tokens": 20}},
            r"chosen of pair train-0/0 has \d+ tokens, generation.max_n",
        ),
    ],
)
def test_what_is_too_long_is_an_error(context, section, message):
    ctx = context()
    for name, changes in section.items():
        for key, value in changes.items():
            setattr(getattr(ctx.config.model, name), key, value)
    with pytest.raises(UserError, match=message) as caught:
        build_dpo_trainer(ctx)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["pairs", "val_pairs"])
def test_without_pairs_one_line_says_what_to_do(context, tmp_path, name):
    ctx = context()
    ctx.inputs[name] = tmp_path / "run_001" / "08_preferences" / f"{name}.jsonl"
    ctx.inputs[name].parent.mkdir(parents=True)
    write_jsonl(ctx.inputs[name], [])
    with pytest.raises(UserError, match=rf"{name}.jsonl: holds no pairs: run `python 08_build") as caught:
        build_dpo_trainer(ctx)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------- against TRL


def stock_trainer(ctx, tokenizer, rows, **changes) -> DPOTrainer:
    """TRL's own trainer on the same pairs as text, which a tokenizer of bytes cuts up in the same way."""
    model, _ = load_policy(ctx.inputs["checkpoint"], ModelSection(), trainable=True)
    algo = ctx.config.algo
    columns = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in rows]
    arguments = DPOConfig(
        **running.trainer_arguments(ctx) | {"output_dir": str(ctx.out / "stock"), "save_strategy": "no"},
        learning_rate=algo.learning_rate,
        lr_scheduler_type=algo.lr_scheduler_type,
        warmup_steps=algo.warmup_steps,
        max_steps=algo.max_steps,
        per_device_train_batch_size=algo.per_device_train_batch_size,
        beta=algo.beta,
        max_length=None,
        precompute_ref_log_probs=True,
        **changes,
    )
    return DPOTrainer(
        model=model, args=arguments, train_dataset=Dataset.from_list(columns), processing_class=tokenizer
    )


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "full"])
def test_training_follows_stock_trl(context, tokenizer, monkeypatch, shared):
    """The same losses and gradient norms step by step, and the same weights, over two epochs."""
    if not shared:
        monkeypatch.setattr(dpo_trainer, "obstacle", lambda model: "a test")
    # All completions end: stock TRL adds an end to those that have none.
    rows = [row for row in pairs(tokenizer) if row["rejected"].endswith("<eos>")]
    ctx = context(training=TrainingSection(save_steps=99, logging_steps=1), algo=replace(DPO, max_steps=4))
    write_jsonl(ctx.inputs["pairs"], rows)
    ours, _ = build_dpo_trainer(ctx)
    assert bool(ours.stock) != shared
    stock = stock_trainer(ctx, tokenizer, rows)
    for trainer in (ours, stock):
        trainer.train()
    for row, other in zip(ours.state.log_history[:4], stock.state.log_history[:4], strict=True):
        for name in ("loss", "grad_norm", "rewards/margins", "logps/rejected", "entropy", "num_tokens"):
            assert row[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6), name
        assert ("logits/chosen" in row) != shared  # not known without logits, so not logged
    moved = 0.0
    start = load_policy(ctx.inputs["checkpoint"], ModelSection(), trainable=True)[0].state_dict()
    for name, parameter in ours.model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter, stock.model.get_parameter(name), rtol=1e-3, atol=1e-5)
            moved = max(moved, (parameter - start[name]).abs().max().item())
    assert moved > 1e-2


# ------------------------------------------------------------------------------------------- reference


def test_reference_log_probabilities_are_those_of_the_sft_policy(context, tiny_models, files):
    trainer, _ = build_dpo_trainer(context())
    sft, _ = load_policy(files["checkpoint"], ModelSection())
    for dataset in (trainer.train_dataset, trainer.eval_dataset):
        for row in dataset:
            for side in ("chosen", "rejected"):
                expected = plain_log_probs(sft, row["prompt_ids"], row[f"{side}_ids"]).sum()
                assert row[f"ref_{side}_logps"] == pytest.approx(expected, rel=1e-5)


# ----------------------------------------------------------------------------------------------- losses


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


SMOOTHING = 0.1
# From the papers: Δ of the chosen (w) and the rejected (r), sums of log pi - log pi_ref over a completion of
# n tokens; b is beta. A value per pair.
LOSSES = {
    # Rafailov et al. 2023, equation 7
    "sigmoid": lambda w, r, nw, nr, b: -np.log(sigmoid(b * (w - r))),
    # Zhao et al. 2023 (SLiC), margin 1
    "hinge": lambda w, r, nw, nr, b: np.maximum(0, 1 - b * (w - r)),
    # Azar et al. 2023, equation 17, with means over tokens (as TRL states)
    "ipo": lambda w, r, nw, nr, b: (w / nw - r / nr - 1 / (2 * b)) ** 2,
    # Chowdhury et al. 2024
    "robust": lambda w, r, nw, nr, b: (
        (-(1 - SMOOTHING) * np.log(sigmoid(b * (w - r))) + SMOOTHING * np.log(sigmoid(-b * (w - r))))
        / (1 - 2 * SMOOTHING)
    ),
    # Ji et al. 2024, KL of (q, 1-q) to (1-e, e)
    "exo_pair": lambda w, r, nw, nr, b: (
        sigmoid(b * (w - r)) * (np.log(sigmoid(b * (w - r))) - np.log(1 - SMOOTHING))
        + sigmoid(b * (r - w)) * (np.log(sigmoid(b * (r - w))) - np.log(SMOOTHING))
    ),
    "nca_pair": lambda w, r, nw, nr, b: (
        -np.log(sigmoid(b * w)) - 0.5 * np.log(sigmoid(-b * w)) - 0.5 * np.log(sigmoid(-b * r))
    ),
    "bco_pair": lambda w, r, nw, nr, b: -np.log(sigmoid(b * w)) - np.log(sigmoid(-b * r)),
    "sppo_hard": lambda w, r, nw, nr, b: (w - 0.5 / b) ** 2 + (r + 0.5 / b) ** 2,
    "apo_zero": lambda w, r, nw, nr, b: 1 - sigmoid(b * w) + sigmoid(b * r),
    "apo_down": lambda w, r, nw, nr, b: sigmoid(b * w) + 1 - sigmoid(b * (w - r)),
    "sigmoid_norm": lambda w, r, nw, nr, b: -np.log(sigmoid(b * (w / nw - r / nr))),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_those_of_the_papers(apart, name):
    """Against NumPy from per-token log-probabilities of plain forward passes, in double precision."""
    apart.loss_types, apart.label_smoothing = [name], SMOOTHING
    apart.model.double().eval()
    rows = apart.train_dataset.select(range(3))
    with torch.no_grad():
        loss = apart.compute_loss(apart.model, next(apart.batches(rows))).item()
    gains, lengths = {}, {}
    for side in ("chosen", "rejected"):
        sums = [
            plain_log_probs(apart.model, row["prompt_ids"], row[f"{side}_ids"]).sum()
            - np.float32(row[f"ref_{side}_logps"])  # checked above
            for row in rows
        ]
        gains[side], lengths[side] = np.array(sums), np.array([len(row[f"{side}_ids"]) for row in rows])
    expected = LOSSES[name](*gains.values(), *lengths.values(), apart.beta).mean()
    assert abs(loss - expected) <= 1e-6
    assert np.abs(gains["chosen"] - gains["rejected"]).max() > 0.5  # the policies do differ


def test_several_losses_are_added_with_their_weights(apart):
    batch = next(apart.batches(apart.train_dataset))
    apart.model.eval()

    def loss(types, weights):
        apart.loss_types, apart.loss_weights = types, weights
        with torch.no_grad():
            return apart.compute_loss(apart.model, batch).item()

    parts = [loss(["sigmoid"], [1.0]), loss(["sft"], [1.0])]
    assert loss(["sigmoid", "sft"], [2.0, 0.5]) == pytest.approx(2 * parts[0] + 0.5 * parts[1], rel=1e-6)


# ------------------------------------------------------------------------------------------- validation


def test_held_out_metrics_against_plain_forwards(apart, policies):
    policy, sft = policies
    margins = []
    for row in apart.eval_dataset:
        gain = {
            side: (
                plain_log_probs(policy, row["prompt_ids"], row[f"{side}_ids"])
                - plain_log_probs(sft, row["prompt_ids"], row[f"{side}_ids"])
            ).sum()
            for side in ("chosen", "rejected")
        }
        margins.append(DPO.beta * (gain["chosen"] - gain["rejected"]))
    apart.model.train()
    found = apart.held_out_metrics()
    assert apart.model.training
    assert found["val_preference_margin"] == pytest.approx(np.mean(margins), rel=1e-4)
    assert found["val_preference_accuracy"] == np.mean(np.array(margins) > 0)
    assert found["val_preference_loss"] == pytest.approx(-np.log(sigmoid(np.array(margins))).mean(), rel=1e-4)
    assert not apart._metrics["eval"] and apart.cost.trained_tokens == 0


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_divergence_is_per_token_at_the_sampling_temperature(apart, policies, temperature):
    policy, sft = policies
    rows = apart.train_dataset.select(range(4))
    found = apart.divergence(rows["prompt_ids"], rows["rejected_ids"], temperature)
    for number, row in enumerate(rows):
        prompt, completion = row["prompt_ids"], row["rejected_ids"]
        logits = [
            model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].double()
            for model in (policy, sft)
        ]
        own, reference = (
            (values / temperature).log_softmax(-1).gather(1, torch.tensor(completion)[:, None])[:, 0]
            for values in logits
        )
        torch.testing.assert_close(
            found[number, : len(completion)].double(), own - reference, atol=2e-5, rtol=1e-4
        )
        assert not found[number, len(completion) :].any()
    assert found.abs().max() > 0.1


def test_kl_estimates_the_true_divergence_of_single_tokens(apart, policies, context, tokenizer):
    """With completions of one token the KL is a sum over the vocabulary: many samples' k1 and k3 meet it."""
    ctx = context(generation=GenerationSection(max_new_tokens=1, batch_size=200))
    records = [replace(RECORDS[0], id=str(number)) for number in range(3000)]
    spec = load_reward_spec(ctx.inputs["reward_spec"])
    validation = PreferenceValidation(records, spec, ctx.config.model, tokenizer, ctx.out, "dpo")
    validation.trainer = apart
    found = validation.measure_kl()
    policy, sft = policies
    ids = torch.tensor([tokenizer(RECORDS[0].input_text)["input_ids"]])
    with torch.no_grad():
        own, reference = (model(ids).logits[0, -1].double().log_softmax(-1) for model in (policy, sft))
    ratio = own - reference
    exact = (own.exp() * ratio).sum().item()
    spread = math.sqrt((own.exp() * ratio.square()).sum().item() / len(records))
    assert found["val_kl_sequence"] == pytest.approx(exact, abs=4 * spread)
    assert found["val_kl"] == pytest.approx(exact, rel=0.25)
    assert exact > 0.01


# --------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta": 0.0}, "beta must be above 0"),
        ({"loss_type": []}, "loss_type must name one loss"),
        (
            {"loss_weights": [1.0, 2.0]},
            r"loss_weights must have a weight for each of loss_type \(1\), found 2",
        ),
        ({"label_smoothing": 0.5}, "label_smoothing must be at least 0 and below 0.5"),
        ({"loss_type": ["exo_pair"]}, "exo_pair needs label_smoothing"),
        ({"warmup_steps": -1}, "warmup_steps must be at least 0"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
    ],
)
def test_impossible_settings_have_one_clear_line(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        check(replace(DPO, **changes))
    assert "\n" not in str(caught.value)
    check(DPO)
