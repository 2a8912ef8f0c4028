"""PPOTrainer on tasks whose best policy is known: a bandit, a two-step task, and nothing but a KL penalty."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from tests.support.ppo_stub import ppo_trainer

TOKENS = ["<pad>", "<eos>", "a", "b", "c", "d", "e", "f"]
A, B, C, F = (TOKENS.index(token) for token in "abcf")


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A folder with a one-layer model of eight tokens, near the uniform policy, and its tokenizer."""
    folder = tmp_path_factory.mktemp("toy")
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(TOKENS)}, unk_token="f"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    ).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        tie_word_embeddings=False,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def trained(toy, tmp_path, pay, rollouts=20, before=None, **changes):
    """A trainer after `rollouts` rollouts of 64 completions, each used for three updates."""
    settings = {
        "prompts": ["e f", "f"],
        "per_device_train_batch_size": 64,
        "num_generations": 32,
        "num_mini_batches": 1,
        "num_ppo_epochs": 3,
        "max_steps": 3 * rollouts,
        "logging_steps": 3,
        "learning_rate": 1e-2,
        "temperature": 1.0,
        "kl_coef": 0.0,
        **changes,
    }
    trainer = ppo_trainer(toy, tmp_path / "out", pay=pay, **settings)
    if before:
        before(trainer)
    trainer.train()
    return trainer


@torch.no_grad()
def probabilities(model, *tokens: int) -> torch.Tensor:
    """Of the next token, after the prompt "f" and these tokens."""
    return model(torch.tensor([[F, *tokens]])).logits[0, -1].softmax(-1)


def divergence(policy, reference) -> float:
    """KL in nats of completions of two tokens, summed over all of them."""
    total = 0.0
    first, first_reference = probabilities(policy), probabilities(reference)
    total += (first * (first / first_reference).log()).sum().item()
    for token in range(8):
        if token != 1:  # the end
            second, other = probabilities(policy, token), probabilities(reference, token)
            total += first[token].item() * (second * (second / other).log()).sum().item()
    return total


def test_a_bandit_finds_the_arm_that_pays(toy, tmp_path):
    trainer = trained(toy, tmp_path, lambda ids: [float(ids[0] == C)], max_completion_length=1, rollouts=15)
    assert probabilities(trainer.model)[C] > 0.95


def two_steps(ids: list[int]) -> list[float]:
    """`a` pays 0.1 and nothing more; `b` costs 0.2, and c, d, e or f after it pays 1."""
    rewards = [{A: 0.1, B: -0.2}.get(ids[0], 0.0)]
    return rewards + [float(ids[0] == B and ids[1] >= C)] * (len(ids) - 1)


@pytest.mark.parametrize(("seed", "separate"), [(0, False), (1, True)], ids=["shared", "separate"])
def test_two_steps_need_credit_for_what_comes_later(toy, tmp_path, seed, separate):
    settings = {"max_completion_length": 2, "learning_rate": 2e-2}
    trainer = trained(toy, tmp_path, two_steps, seed=seed, separate=separate, **settings)
    first, second = probabilities(trainer.model)[B], probabilities(trainer.model, B)[C:].sum()
    assert first * second > 0.9


def test_without_credit_for_what_comes_later_the_other_arm_wins(toy, tmp_path):
    """The same task at gamma 0: so the test above does test the credit."""
    trainer = trained(toy, tmp_path, two_steps, max_completion_length=2, gamma=0.0)
    assert probabilities(trainer.model)[A] > 0.9


def move(trainer):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter += 0.15 * torch.randn(parameter.shape, generator=generator)


def test_with_zero_rewards_the_penalty_brings_the_policy_back_to_the_reference(toy, tmp_path):
    settings = {"max_completion_length": 2, "kl_coef": 1.0, "whiten_advantages": False}
    distances = []

    def before(trainer):
        move(trainer)
        distances.append(divergence(trainer.model, trainer.ref_model))

    trainer = trained(toy, tmp_path, lambda ids: [0.0] * len(ids), before=before, **settings)
    distances.append(divergence(trainer.model, trainer.ref_model))
    assert distances[0] > 0.3 and distances[1] < 0.03, distances


def test_the_penalty_settles_where_theory_says(toy, tmp_path):
    """One token, reward r, penalty beta: the best policy is proportional to pi_ref exp(r / beta)."""
    beta, pays = 0.5, {A: 1.0, B: 0.5, C: -0.5}
    trainer = trained(
        toy,
        tmp_path,
        lambda ids: [pays.get(ids[0], 0.0)],
        max_completion_length=1,
        kl_coef=beta,
        learning_rate=5e-3,
        rollouts=40,
        whiten_advantages=False,
    )
    reward = torch.tensor([pays.get(token, 0.0) for token in range(8)])
    best = probabilities(trainer.ref_model) * (reward / beta).exp()
    torch.testing.assert_close(probabilities(trainer.model), best / best.sum(), rtol=0, atol=0.06)


def test_adaptive_kl_holds_its_target(toy, tmp_path):
    """A reward that pulls one way without end: the coefficient rises until the KL is what was asked for."""
    trainer = trained(
        toy,
        tmp_path,
        lambda ids: [float(token == C) for token in ids],
        max_completion_length=1,
        kl_coef=0.2,
        adaptive_kl=True,
        kl_target=0.5,
        kl_horizon=60,
        rollouts=40,
        lr_scheduler_type="constant",
    )
    rows = [row for row in trainer.state.log_history if "kl_sequence" in row]
    last = sum(row["kl_sequence"] for row in rows[-15:]) / 15
    assert last == pytest.approx(0.5, abs=0.15)
    assert max(row["kl_coef"] for row in rows) > 0.1
