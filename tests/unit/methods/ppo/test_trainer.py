"""PPOTrainer on tiny models: rollouts, losses and gradients against slow references, and what stops a run."""

import logging
import math
import random

import numpy as np
import pytest
import torch
from transformers import TrainerCallback
from transformers.utils import logging as transformers_logging

from tests.support.ppo_formulas import numpy_gae, numpy_policy_loss, numpy_value_loss
from tests.support.ppo_stub import (
    feed_by_prompt,
    logged,
    ppo_trainer,
    tiny_model,
    token_values,
    trained_weights,
)
from utils.frame.files import UserError
from utils.methods.ppo.ppo_config import PPOConfig
from utils.models.prefix.shared_prefix import CompletionBatch
from utils.models.value_head import ValueHead

EOS = 1
# Rows of the data set, by group, and their completions: ended, single tokens, cut at the limit, empty.
ROWS = [0, 0, 0, 0, 1, 1, 3, 4]
COMPLETIONS = [[50, 60, EOS], [70], [EOS], [51, 52, 53, 54, 55, 56], [], [80, EOS], [90, 91, 92, EOS], [93]]


@pytest.fixture(autouse=True)
def quiet():
    transformers_logging.disable_progress_bar()
    yield
    transformers_logging.enable_progress_bar()


@pytest.fixture
def make(tiny_models, tmp_path):
    """A factory of trainers on tiny models; `moved` leaves the policy somewhere else than its reference."""

    def build(architecture="llama", moved=False, **changes):
        trainer = ppo_trainer(tiny_models(architecture), tmp_path / "out", **changes)
        if moved:
            move(trainer)
        return trainer

    return build


def move(trainer, scale=0.02):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter += scale * torch.randn(parameter.shape, generator=generator)


def feed(trainer, completions=COMPLETIONS):
    trainer._generate_single_turn = lambda prompt_ids, *_: (completions[: len(prompt_ids)], None)


def rollout_of(trainer, rows=ROWS, completions=COMPLETIONS):
    feed(trainer, completions)
    trainer.model.train()
    data = trainer.train_dataset
    return trainer._generate_and_score_completions([dict(data[row]) for row in rows])


def recorded(trainer) -> dict[str, float]:
    return {name: values[-1] for name, values in trainer._metrics["train"].items()}


def slow_scores(model, prompt: list[int], completion: list[int], temperature: float):
    """Log-probabilities, entropies and hidden states of one completion: a plain forward pass, no padding."""
    output = model(torch.tensor([prompt + completion]), output_hidden_states=True)
    before = slice(len(prompt) - 1, len(prompt) - 1 + len(completion))
    log_probs = (output.logits[0, before] / temperature).log_softmax(-1)
    entropies = -(log_probs.exp() * log_probs).sum(-1)
    chosen = log_probs.gather(1, torch.tensor(completion).reshape(-1, 1)).squeeze(1)
    return chosen, entropies, output.hidden_states[-1][0, before]


def slow_rollout(trainer, model, rows=ROWS, completions=COMPLETIONS):
    """The same for a whole rollout, and the critic's values."""
    tokenizer = trainer.processing_class
    found = []
    for row, completion in zip(rows, completions, strict=True):
        prompt = tokenizer(trainer.train_dataset[row]["prompt"], add_special_tokens=False)["input_ids"]
        chosen, entropies, states = slow_scores(model, prompt, completion, trainer.temperature)
        if trainer.value_model is None:
            head = trainer.critic
        else:
            head = trainer.critic.head
            states = slow_scores(trainer.critic.model, prompt, completion, 1.0)[2]
        found.append((chosen, entropies, states @ head.weight[0] + head.bias))
    return found


def padded(rows, columns=6):
    return np.stack([np.pad(np.asarray(row, dtype=float), (0, columns - len(row))) for row in rows])


# ------------------------------------------------------------------------------------------- rollouts


@pytest.mark.parametrize(
    ("architecture", "lora", "separate"),
    [
        ("llama", False, False),
        ("llama", True, True),
        ("qwen2", True, False),
        ("gpt2", False, True),
        ("gpt2", True, False),
    ],
)
def test_a_rollout_equals_a_slow_one(make, tiny_models, architecture, lora, separate):
    """Log-probabilities at the sampling temperature, values, KL and entropy rewards, GAE, whitening, logs."""
    trainer = make(
        architecture,
        lora=lora,
        separate=separate,
        moved=True,
        gamma=0.9,
        lam=0.8,
        entropy_reward_coef=0.05,
    )
    found = rollout_of(trainer)
    lengths = [len(completion) for completion in COMPLETIONS]
    mask = np.arange(6) < np.array(lengths)[:, None]
    assert np.array_equal(found["completion_mask"].numpy(), mask)

    with torch.no_grad():
        scores = slow_rollout(trainer, trainer.model)
        reference = slow_rollout(trainer, tiny_model(tiny_models(architecture), lora))
    log_probs, entropies, values = (padded(column) for column in zip(*scores, strict=True))
    log_ratio = log_probs - padded([row[0] for row in reference])
    paid = padded([token_values(completion) for completion in COMPLETIONS])
    rewards = paid - 0.1 * log_ratio - 0.05 * log_probs
    advantages = numpy_gae(rewards, values, lengths, 0.9, 0.8)
    to_go = numpy_gae(rewards, np.zeros_like(values), lengths, 0.9, 1.0)
    flat = advantages[mask]
    whitened = np.where(mask, (advantages - flat.mean()) / flat.std(ddof=1), 0)
    for name, expected in (
        ("old_log_probs", log_probs),
        ("old_values", values),
        ("returns", advantages + values),
        ("advantages", whitened),
    ):
        np.testing.assert_allclose(found[name].numpy(), expected, atol=3e-5, err_msg=name)
    assert np.abs(log_ratio).max() > 0.01
    expected = {
        "reward": paid.sum() / 8,
        "train_accuracy": (paid.sum(1) > 0).mean(),
        "num_tokens": sum(lengths) + sum(len(trainer.train_dataset[row]["prompt"]) for row in ROWS),
        "completions/mean_length": np.mean(lengths),
        "completions/clipped_ratio": 4 / 8,  # two single tokens, the limit, and nothing at all
        "values/mean": values[mask].mean(),
        "returns/mean": (advantages + values)[mask].mean(),
        "explained_variance/lambda_1": 1 - (to_go - values)[mask].var() / to_go[mask].var(),
        "entropy": entropies[mask].mean(),
        "kl": (np.exp(-log_ratio) - 1 + log_ratio)[mask].mean(),
        "kl_sequence": log_ratio.sum() / 8,
        "kl_coef": 0.1,
    }
    numbers = recorded(trainer)
    for name, value in expected.items():
        assert numbers[name] == pytest.approx(value, rel=1e-3, abs=3e-5), name


def test_switches_of_whitening(make):
    trainer = make(whiten_advantages=False, kl_coef=0.0)
    found = rollout_of(trainer)
    mask = found["completion_mask"].bool()
    torch.testing.assert_close(found["advantages"], (found["returns"] - found["old_values"]))
    assert trainer.ref_model is None and "kl" not in recorded(trainer)
    scaled = make(whiten_advantages=False, kl_coef=0.0, whiten_rewards=True)
    spread = np.std([value for row in COMPLETIONS for value in token_values(row)], ddof=1)
    expected = make(
        whiten_advantages=False,
        kl_coef=0.0,
        pay=lambda ids: [value / spread for value in token_values(ids)],
    )
    torch.testing.assert_close(rollout_of(scaled)["returns"][mask], rollout_of(expected)["returns"][mask])


def test_sampled_completions_keep_their_end_and_nothing_after_it(make):
    """Through the real sampler: an end of sequence is the last token, one cut off has the full length."""
    trainer = make(max_completion_length=5, per_device_train_batch_size=32, num_generations=64)
    with torch.no_grad():  # half of all tokens end a completion
        head = trainer.model.get_output_embeddings().weight
        head *= 0.1
    trainer.model.lm_head.register_forward_hook(
        lambda module, inputs, output: output + 3.5 * torch.nn.functional.one_hot(torch.tensor(EOS), 259)
    )
    trainer.model.train()
    rows = [dict(trainer.train_dataset[0])] * 64
    found = trainer._generate_and_score_completions(rows)
    seen = []
    for ids, mask in zip(found["completion_ids"], found["completion_mask"].bool(), strict=True):
        kept = ids[mask].tolist()
        seen.append((len(kept), kept[-1] == EOS))
        assert EOS not in kept[:-1] and len(kept) <= 5
        assert kept[-1] == EOS or len(kept) == 5
    assert {(1, True), (5, False)} <= set(seen)
    cut = sum(not ended for _, ended in seen)
    assert recorded(trainer)["completions/clipped_ratio"] == pytest.approx(cut / 64)


# --------------------------------------------------------------------------------- losses and gradients


def update_inputs(trainer):
    """A rollout of all the rows as one micro-batch, with old numbers some way off, so that clipping shows."""
    found = rollout_of(trainer)
    noise = {"old_log_probs": 0.3, "known_values": 0.2, "old_values": 0.4, "advantages": 1.0, "returns": 1.0}
    generator = torch.Generator().manual_seed(2)
    for name, scale in noise.items():
        found[name] = found[name] + scale * torch.randn(found[name].shape, generator=generator)
    return found | {"tokens": found["completion_mask"].sum()}


def gradients(trainer) -> dict[str, torch.Tensor]:
    parameters = {**dict(trainer.model.named_parameters()), **dict(trainer.critic.named_parameters())}
    found = {name: value.grad.clone() for name, value in parameters.items() if value.grad is not None}
    for parameter in parameters.values():
        parameter.grad = None
    return found


@pytest.mark.parametrize("separate", [False, True], ids=["shared", "separate"])
@pytest.mark.parametrize(("architecture", "lora"), [("llama", True), ("qwen2", False), ("gpt2", True)])
def test_loss_and_gradients_equal_a_slow_pass_and_one_without_shared_prefixes(
    make, architecture, lora, separate
):
    trainer = make(architecture, lora=lora, separate=separate, moved=True, entropy_coef=0.05, vf_coef=0.3)
    inputs = update_inputs(trainer)
    losses, grads = [], []
    for obstacle in (None, "for the test"):
        trainer._scoring_obstacle = lambda *_, reason=obstacle: reason
        loss = trainer._compute_loss(trainer.model, inputs)
        loss.backward()
        losses.append(loss.item())
        grads.append(gradients(trainer))

    mask = inputs["completion_mask"].bool()
    scores = slow_rollout(trainer, trainer.model)
    log_probs, entropies, values = (torch.cat(column) for column in zip(*scores, strict=True))
    old_log_probs, known, old_values, advantages, returns = (
        inputs[name][mask]
        for name in ("old_log_probs", "known_values", "old_values", "advantages", "returns")
    )
    values = known + values
    ratio = (log_probs - old_log_probs).exp()
    policy = -torch.min(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
    near = torch.max(torch.min(values, old_values + 0.2), old_values - 0.2)
    value = torch.max((values - returns) ** 2, (near - returns) ** 2) / 2
    slow = (policy + 0.3 * value - 0.05 * entropies).mean()
    slow.backward()
    losses.append(slow.item())
    grads.append(gradients(trainer))

    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5, abs=1e-6)
    for other in grads[1:]:
        assert other.keys() == grads[0].keys()
        for name, expected in grads[0].items():
            scale = float(expected.abs().max())
            torch.testing.assert_close(other[name], expected, rtol=1e-4, atol=1e-5 * scale + 1e-7, msg=name)
    numpy = [tensor.detach().double().numpy() for tensor in (log_probs, old_log_probs, advantages)]
    expected, clips = numpy_policy_loss(*numpy, 0.2)
    update = trainer._updates[0]
    assert update["loss/policy"] == pytest.approx(expected.mean(), abs=1e-5)
    assert update["clip_ratio/policy"] == pytest.approx(clips.mean()) and 0 < clips.mean() < 1
    numpy = [tensor.detach().double().numpy() for tensor in (values, old_values, returns)]
    expected, clips = numpy_value_loss(*numpy, 0.2)
    assert update["loss/value"] == pytest.approx(expected.mean(), abs=1e-5)
    assert update["clip_ratio/value"] == pytest.approx(clips.mean()) and 0 < clips.mean() < 1
    assert update["loss"] == pytest.approx(losses[0], abs=1e-6)
    distance = (old_log_probs - log_probs).detach()
    assert update["approx_kl"] == pytest.approx(((-distance).exp() - 1 + distance).mean().item(), rel=1e-3)


@pytest.mark.parametrize("separate", [False, True], ids=["shared", "separate"])
def test_the_gradient_is_that_of_finite_differences(make, separate):
    """In float64, along random directions through everything that is trained."""
    # GPT-2 computes in the weights' precision throughout; Llama's norms do so in float32.
    trainer = make("gpt2", lora=True, separate=separate, moved=True, entropy_coef=0.05, vf_coef=0.3)
    trainer.model.double()
    trainer.critic.double()
    inputs = update_inputs(trainer)
    named = {**dict(trainer.model.named_parameters()), **dict(trainer.critic.named_parameters())}
    parameters = list({id(value): value for value in named.values() if value.requires_grad}.values())
    trainer._compute_loss(trainer.model, inputs).backward()
    generator = torch.Generator().manual_seed(3)
    step = 1e-6
    for _ in range(4):
        direction = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]
        slope = sum((p.grad * d).sum().item() for p, d in zip(parameters, direction, strict=True))
        losses = []
        for sign in (1, -2, 1):  # ahead, behind, and back where it was
            with torch.no_grad():
                for parameter, d in zip(parameters, direction, strict=True):
                    parameter += sign * step * d
                losses.append(trainer._compute_loss(trainer.model, inputs).item())
        assert slope == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=1e-6, abs=1e-7)
    assert abs(slope) > 1e-3


def test_a_rollout_of_nothing_but_empty_completions_gives_a_gradient_of_zero(make):
    trainer = make()
    found = rollout_of(trainer, [0] * 4, [[]] * 4)
    loss = trainer._compute_loss(trainer.model, found | {"tokens": torch.tensor(1)})
    loss.backward()
    assert loss.item() == 0
    assert all(not grad.any() for grad in gradients(trainer).values())


# -------------------------------------------------------------------------------------------- updates


def trained(trainer):
    trainer.train()
    return trainer


@pytest.mark.parametrize("settings", [{}, {"lora": True, "separate": True}], ids=["shared", "separate"])
def test_a_training_without_shared_prefixes_ends_in_the_same_place(make, settings, caplog):
    caplog.set_level(logging.WARNING)
    shared = trained(make(**settings))
    other = make(**settings)
    other._scoring_obstacle = lambda *_: "for the test"
    trained(other)
    compare(shared, other)
    messages = [record.message for record in caplog.records if "without shared prefixes" in record.message]
    assert messages == ["scoring without shared prefixes: for the test"]


def compare(first, second):
    for expected, found in zip(logged(first), logged(second), strict=True):
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            # A token at the edge of a clip range falls to either side by rounding.
            tolerance = 0.05 if "clip_ratio" in name else 1e-4
            assert found[name] == pytest.approx(value, rel=2e-3, abs=tolerance), name
    weights = trained_weights(second)
    for name, value in trained_weights(first).items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=2e-4, msg=name)


def test_gradient_checkpointing_changes_nothing(make):
    settings = {"lora": True, "separate": True}
    first = trained(make(**settings))
    second = make(**settings, gradient_checkpointing=True)
    compare(first, trained(second))


def test_accumulated_micro_batches_are_one_mini_batch(make):
    """The mean is over the mini-batch's tokens, however it is cut into micro-batches."""
    settings = {"num_mini_batches": 1, "num_ppo_epochs": 3, "max_steps": 6, "logging_steps": 3}
    whole = make(per_device_train_batch_size=8, **settings)
    cut = make(per_device_train_batch_size=2, gradient_accumulation_steps=4, **settings)
    for trainer in (whole, cut):
        feed_by_prompt(trainer)
        trainer.train()
    compare(whole, cut)


def test_every_epoch_passes_over_the_whole_rollout_in_another_order(make):
    trainer = make(num_generations=2)
    feed_by_prompt(trainer)
    seen, tokens = [], []

    def look(model, inputs):
        seen.append(inputs["old_log_probs"].sum(1).tolist())
        tokens.append((int(inputs["completion_mask"].sum()), int(inputs["tokens"])))
        assert (inputs["record"][::2] == inputs["record"][1::2]).all()  # groups stay together
        return original(model, inputs)

    original, trainer._compute_loss = trainer._compute_loss, look
    trainer.train()
    assert len(seen) == 8 and all(own == mini_batch for own, mini_batch in tokens)
    epochs = [[*seen[start], *seen[start + 1]] for start in range(0, 8, 2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) and sorted(epochs[2]) == sorted(epochs[3])
    assert len({tuple(epoch) for epoch in epochs}) > 2


def test_one_completion_per_prompt_is_enough(make):
    prompts = [f"{number}+1=" for number in range(8)]
    trainer = trained(make(num_generations=1, max_steps=4, prompts=prompts))
    assert trainer.state.global_step == 4 and trainer.args.num_generations == 1


def test_the_log_has_a_row_per_rollout_with_every_number(make):
    trainer = trained(make(lora=True, separate=True, adaptive_kl=True, kl_target=0.01, kl_horizon=10))
    rows = [row for row in trainer.state.log_history if "reward" in row]
    assert [row["step"] for row in rows] == [4, 8]
    names = "reward rewards/exact_match/mean train_accuracy returns/mean values/mean kl"
    names += " explained_variance/lambda_1"
    names += " kl_sequence kl_coef approx_kl clip_ratio/policy clip_ratio/value entropy loss loss/policy"
    names += " loss/value grad_norm grad_norm/value completions/mean_length completions/clipped_ratio"
    names += " updates_skipped tokens_per_second"
    for row in rows:
        assert set(names.split()) <= set(row)
        assert all(math.isfinite(row[name]) for name in names.split())
        assert row["tokens_per_second"] > 0 and row["updates_skipped"] == 0
    assert rows[0]["kl_coef"] == 0.1 and rows[1]["kl_coef"] == pytest.approx(0.1 * (1 - 0.2 * 8 / 10))


# ------------------------------------------------------------------------------------------ target_kl


class Watch(TrainerCallback):
    """Copies of weights and optimizer state after every step."""

    def __init__(self, trainer):
        self.trainer, self.seen = trainer, []

    def on_step_end(self, args, state, control, **kwargs):
        adam = {
            (number, name): torch.as_tensor(value).clone()
            for number, moments in self.trainer.optimizer.state_dict()["state"].items()
            for name, value in moments.items()
        }
        self.seen.append((trained_weights(self.trainer), adam))


@pytest.mark.parametrize("separate", [False, True], ids=["shared", "separate"])
def test_past_target_kl_updates_are_skipped_truly(make, separate):
    """Neither weights nor Adam's moments and counts move; the next rollout goes on."""
    trainer = make(separate=separate, target_kl=1e-4, num_ppo_epochs=3, max_steps=12, logging_steps=6)
    trainer.add_callback(watch := Watch(trainer))
    trainer.train()
    rows = [row for row in trainer.state.log_history if "reward" in row]
    assert all(2 <= row["updates_skipped"] <= 5 for row in rows)
    skipped = int(rows[0]["updates_skipped"])
    changed = [
        any(not torch.equal(before[0][name], after[0][name]) for name in before[0])
        for before, after in zip(watch.seen, watch.seen[1:], strict=False)
    ]
    done = 6 - skipped
    assert changed[:5] == [True] * (done - 1) + [False] * skipped and changed[5]
    for step in range(done, 6):
        for name, value in watch.seen[done - 1][1].items():
            assert torch.equal(watch.seen[step][1][name], value), name
    assert rows[0]["approx_kl"] > 1e-4 and math.isfinite(rows[0]["grad_norm"])
    assert rows[0]["loss"] != 0


def test_without_target_kl_or_below_it_nothing_is_skipped(make):
    free = trained(make())
    held = trained(make(target_kl=100.0))
    for first, second in zip(logged(free), logged(held), strict=True):
        assert first == second


# --------------------------------------------------------------------------------- optimizer and critic


@pytest.mark.parametrize("separate", [False, True], ids=["shared", "separate"])
def test_the_critic_has_its_own_learning_rate(make, separate):
    trainer = make(separate=separate, value_learning_rate=0.05, weight_decay=0.01, warmup_steps=2)
    optimizer = trainer.create_optimizer()
    assert trainer.create_optimizer() is optimizer
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    listed = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(listed) == len(rates)
    critic = {id(parameter) for parameter in trainer.critic.parameters() if parameter.requires_grad}
    policy = {id(p) for p in trainer.model.parameters() if p.requires_grad} - critic
    assert set(rates) == critic | policy
    assert {rates[key] for key in critic} == {0.05} and {rates[key] for key in policy} == {1e-2}
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    head = trainer.critic if isinstance(trainer.critic, ValueHead) else trainer.critic.head
    assert id(head.weight) in decayed and id(head.bias) not in decayed


def test_the_value_head_starts_as_it_should(tiny_models):
    head = ValueHead(4096, seed=1)
    assert head.weight.dtype == torch.float32 and not head.bias.any()
    assert head.weight.std().item() == pytest.approx(1 / math.sqrt(4097), rel=0.05)
    assert head.weight.mean().item() == pytest.approx(0, abs=1e-3)
    assert torch.equal(head.weight, ValueHead(4096, seed=1).weight)
    assert not torch.equal(head.weight, ValueHead(4096, seed=2).weight)
    states = torch.randn(3, 4096, dtype=torch.bfloat16)
    assert head(states).dtype == torch.float32 and head(states).shape == (3,)


def test_a_critic_of_its_own_leaves_the_policys_trunk_alone(make):
    """With all advantages 0 only the value loss is left: it moves a shared trunk, not a separate one."""
    for separate in (False, True):
        trainer = make(separate=separate, whiten_advantages=False, kl_coef=0.0)
        inputs = rollout_of(trainer)
        inputs["advantages"] *= 0
        trainer._compute_loss(trainer.model, inputs | {"tokens": torch.tensor(20)}).backward()
        moved = any(p.grad is not None and p.grad.any() for p in trainer.model.model.parameters())
        assert moved is not separate
        assert all(
            p.grad is not None for name, p in trainer.critic.named_parameters() if "lm_head" not in name
        )


# ------------------------------------------------------------------------------------ known fixed points


def test_nothing_to_learn_and_a_critic_that_knows_it_leave_the_policy_where_it_is(make):
    """Zero rewards, KL penalty on, V = 0: every advantage is 0, and not one weight of the policy moves."""
    trainer = make(lora=True, pay=lambda ids: [0.0] * len(ids))
    with torch.no_grad():
        trainer.critic.weight.zero_()
    before = trained_weights(trainer)
    trainer.train()
    for name, value in trained_weights(trainer).items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("reward", [1.0, -3.0, 1e4])
def test_equal_rewards_explode_nothing(make, reward):
    """Every completion of one token, the same reward: no spread in rewards, little in advantages."""
    trainer = make(
        pay=lambda ids: [reward] * len(ids), max_completion_length=1, whiten_rewards=True, max_steps=12
    )
    trainer.train()
    rows = [row for row in logged(trainer) if "reward" in row]
    assert all(row["reward"] == pytest.approx(reward) for row in rows)
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert all(value.isfinite().all() for value in trained_weights(trainer).values())


# ---------------------------------------------------------------------------------------- what stops it


def break_rewards(trainer):
    trainer.pipeline.pay = lambda ids: [math.nan if ids[:1] == [51] else 1.0] * len(ids)


def break_values(trainer):
    with torch.no_grad():
        trainer.critic.bias.fill_(math.inf)


def break_policy(trainer):
    with torch.no_grad():
        next(p for p in trainer.model.parameters() if p.requires_grad).fill_(math.nan)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (break_rewards, r"rewards that are not finite at step 7, for train-0: "),
        (break_values, r"values that are not finite at step 7, for train-0, train-1, train-3, train-4: "),
        (break_policy, r"log-probabilities that are not finite at step 7, for train-0, "),
    ],
)
def test_numbers_that_are_not_finite_stop_the_rollout(make, broken, message):
    trainer = make()
    trainer.state.global_step = 7
    broken(trainer)
    with pytest.raises(UserError, match=message) as caught:
        rollout_of(trainer)
    assert "\n" not in str(caught.value) and "learning_rate" in str(caught.value)


def test_numbers_that_are_not_finite_stop_the_update(make):
    trainer = make()
    trainer.state.global_step = 7
    inputs = update_inputs(trainer)
    inputs["old_log_probs"] = inputs["old_log_probs"] - 1000  # the ratio overflows
    with pytest.raises(UserError, match="losses that are not finite at step 7, for train-") as caught:
        trainer._compute_loss(trainer.model, inputs)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="grad_norm is nan at step 7: "):
        trainer._get_grad_norm(trainer.model, torch.tensor(math.nan))


def test_a_training_stops_before_broken_gradients_reach_the_weights(make):
    trainer = make()
    loss = trainer._compute_loss

    def broken(model, inputs):
        return loss(model, inputs) * (math.nan if trainer.state.global_step == 2 else 1.0)

    trainer._compute_loss = broken
    with pytest.raises(UserError, match="grad_norm is nan at step 2"):
        trainer.train()
    assert all(value.isfinite().all() for value in trained_weights(trainer).values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fp16": True}, "PPO runs in float32 or bfloat16: set model.torch_dtype"),
        (
            {"save_strategy": "steps", "save_steps": 2},
            "save_steps is 2 but a rollout lasts 4 optimizer steps",
        ),
        ({"num_generations": 1}, "takes 8 prompts and the training set has 5: make rollouts smaller"),
    ],
)
def test_impossible_settings_are_refused(make, changes, message):
    with pytest.raises(UserError, match=message):
        make(**changes)


def test_models_whose_logits_are_no_plain_head_are_refused(make, tiny_models, tmp_path, monkeypatch):
    monkeypatch.setattr("utils.methods.ppo.trainer.head_obstacle", lambda model: "it rescales its logits")
    with pytest.raises(UserError, match="PPO cannot score this model: it rescales its logits"):
        make()


def test_dropout_is_off(make, tiny_models):
    trainer = make("gpt2")
    model = tiny_model(tiny_models("llama"))
    model.config.attention_dropout = 0.5
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    from utils.methods.ppo.trainer import _make_ready

    _make_ready(model)
    model.train()
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(model(ids).logits, model(ids).logits)
    assert trainer.args.disable_dropout


def test_settings_follow_from_ppos(tmp_path):
    config = PPOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=3,
        num_mini_batches=4,
        num_ppo_epochs=5,
        num_generations=1,
        kl_coef=0.2,
        use_cpu=True,
        bf16=False,
    )
    assert (config.steps_per_generation, config.num_iterations, config.generation_batch_size) == (12, 5, 24)
    assert (config.beta, config.num_generations, config.disable_dropout) == (0.2, 1, True)


def test_scores_do_not_depend_on_the_rollouts_pieces(make):
    """Chunks of the no-grad pass: whole groups or cut ones, the numbers are the same."""
    results = []
    for size in (8, 3, 1):
        trainer = make(moved=True)
        trainer.args.per_device_train_batch_size = size
        results.append(rollout_of(trainer))
    for other in results[1:]:
        for name in ("old_log_probs", "old_values", "returns"):
            torch.testing.assert_close(other[name], results[0][name], rtol=1e-5, atol=2e-5)


def test_random_masks_agree_with_and_without_shared_prefixes(make):
    """Log-probability, entropy and value of random batches: the two paths of the forward pass."""
    trainer = make("gpt2", moved=True)
    draw = random.Random(0)
    for _ in range(10):
        prompts = [[draw.randrange(3, 200) for _ in range(draw.randint(1, 5))] for _ in range(3)]
        rows = [draw.randrange(3) for _ in range(5)]
        completions = [[draw.randrange(3, 200) for _ in range(draw.randint(0, 4))] for _ in rows]
        batch = CompletionBatch.of([prompts[row] for row in rows], completions, torch.device("cpu"))
        with torch.no_grad():
            first, second = (
                trainer.model(shared_prefix=batch, shared=shared, temperature=0.7, entropy=True, value=True)
                for shared in (True, False)
            )
        for name in ("log_prob", "entropy", "value"):
            torch.testing.assert_close(getattr(first, name), getattr(second, name), rtol=1e-5, atol=2e-5)
        assert len(first.value) == sum(map(len, completions))
