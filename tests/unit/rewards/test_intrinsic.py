"""The intrinsic reward: its identities on real model outputs in float64, and its definition term by term.

Every identity is a function that raises where it does not hold; a mutation test feeds each with logits taken
one row too late, which all must notice. What they are held against comes from one full forward pass of
Transformers per completion, without padding.
"""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.support.teacher_scores import rollouts
from tests.support.tiny_models import ARCHITECTURES, VOCABULARY
from utils.models.prefix.shared_prefix import CompletionBatch
from utils.models.teacher import Teacher
from utils.rewards.intrinsic import FORMS, missing_eos, outcome_reward, token_rewards

TOLERANCE = 1e-9


@dataclass(frozen=True)
class Truth:
    """What plain forward passes say, float64 [B, C] unless noted, 0 where masked."""

    q: Tensor
    v: Tensor
    log_pi: Tensor  # alpha * log_softmax(f / alpha) of the chosen token, by torch's own log_softmax
    state: Tensor  # [B, C, H], the final hidden state before the token
    late_q: Tensor  # q and v of the row after: the state that has seen the token already
    late_v: Tensor


def truth_of(model, batch: CompletionBatch, alpha: float) -> Truth:
    shape = batch.completion_mask.shape
    fields = {
        name: torch.zeros(shape, dtype=torch.float64) for name in ("q", "v", "log_pi", "late_q", "late_v")
    }
    states = torch.zeros(*shape, model.config.hidden_size, dtype=torch.float64)
    for b in range(shape[0]):
        prompt = batch.prompt_ids[b][batch.prompt_mask[b].bool()].tolist()
        completion = batch.completion_ids[b][batch.completion_mask[b].bool()].tolist()
        with torch.no_grad():
            output = model(torch.tensor([prompt + completion]), output_hidden_states=True)
        logits = output.logits[0, :, :VOCABULARY]
        for c, token in enumerate(completion):
            position = len(prompt) + c
            for late, row in (("", logits[position - 1]), ("late_", logits[position])):
                fields[late + "q"][b, c] = row[token]
                fields[late + "v"][b, c] = alpha * (row / alpha).exp().sum().log()
            fields["log_pi"][b, c] = alpha * (logits[position - 1] / alpha).log_softmax(-1)[token]
            states[b, c] = output.hidden_states[-1][0, position - 1]
    return Truth(**fields, state=states)


def double(folder) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)


def shifted_model(folder, seed: int = 3) -> tuple[torch.nn.Module, Tensor]:
    """The model with c(s) = w . state(s) added to all logits of a state, and w."""
    model = double(folder)
    w = torch.randn(
        model.config.hidden_size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight + w)  # a matrix of its own: embeddings stay as they were
    return model, w


def assert_equal(found: Tensor, wanted: Tensor) -> None:
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, wanted, rtol=0, atol=TOLERANCE)


def following(values: Tensor) -> Tensor:
    """values[:, h+1] at h, 0 at the end."""
    return torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)


def discounts(mask: Tensor, gamma: float) -> Tensor:
    return gamma ** torch.arange(mask.shape[1], dtype=torch.float64)


# ---------------------------------------------------------------------------------- the checks (facts.md §1)


def check_indexing(q: Tensor, v: Tensor, mask: Tensor, truth: Truth) -> None:
    """Token at position p: Q and V(s_h) from logits row p - 1."""
    assert_equal(q, truth.q)
    assert_equal(v, truth.v)


def check_telescoping(q: Tensor, v: Tensor, mask: Tensor, truth: Truth) -> None:
    """(Discounted) sums: bellman's is that of alpha * log pi_hat plus V(s_1), the other forms' without it."""
    for gamma in (1.0, 0.9, 0.0):
        weights = discounts(mask, gamma)
        wanted = (weights * truth.log_pi).sum(1)
        for form in FORMS:
            rewards = token_rewards(q, v, mask, form=form, gamma=gamma)
            offset = truth.v[:, 0] if form == "bellman" else 0
            assert_equal((weights * rewards).sum(1), wanted + offset)


def check_outcome(q: Tensor, v: Tensor, mask: Tensor, truth: Truth) -> None:
    assert_equal(outcome_reward(q, v, mask), truth.log_pi.sum(1))


def check_final_token(q: Tensor, v: Tensor, mask: Tensor, truth: Truth) -> None:
    """The last kept token is paid its raw Q, finished or cut: V after it is 0."""
    rows = mask.sum(1).nonzero().squeeze(1)
    last = mask.sum(1)[rows] - 1
    for gamma in (1.0, 0.9):
        rewards = token_rewards(q, v, mask, form="bellman", gamma=gamma)
        assert_equal(rewards[rows, last], truth.q[rows, last])


def check_critic(q: Tensor, v: Tensor, mask: Tensor, truth: Truth) -> None:
    """With the critic set to V, the TD error is alpha * log pi_hat: only the identified part is left."""
    for gamma in (1.0, 0.9):
        rewards = token_rewards(q, v, mask, form="bellman", gamma=gamma)
        assert_equal(rewards + gamma * following(truth.v) - truth.v, truth.log_pi)


CHECKS = (check_indexing, check_telescoping, check_outcome, check_final_token, check_critic)


def check_shift(q: Tensor, v: Tensor, shifted_q: Tensor, shifted_v: Tensor, mask: Tensor, c: Tensor) -> None:
    """Adding c(s), [B, C], to all logits of a state moves bellman by c_h - gamma c_{h+1}, logprob not at all,
    and no group-relative advantage of a completion's sum."""
    for gamma in (1.0, 0.9):
        before, after = (
            {form: token_rewards(*scores, mask, form=form, gamma=gamma) for form in FORMS}
            for scores in ((q, v), (shifted_q, shifted_v))
        )
        assert_equal(after["bellman"], before["bellman"] + c - gamma * following(c))
        assert_equal(after["logprob"], before["logprob"])
        weights = discounts(mask, gamma)
        for form in FORMS:
            sums = [(weights * rewards[form]).sum(1) for rewards in (before, after)]
            # Rows without tokens are in no group: V(s_1) of their state is in no reward.
            groups = [rows[mask[rows].any(1)] for rows in torch.arange(12).split(4)]
            for rows in groups:
                assert_equal(*(total[rows] - total[rows].mean() for total in sums))


# ------------------------------------------------------------------------------------------ on real models


@pytest.mark.parametrize("alpha", [1.0, 0.6])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_identities_hold_on_real_model_outputs(tiny_models, name, alpha):
    model, batch = double(tiny_models(name)), rollouts()
    scores = Teacher(model, VOCABULARY, alpha=alpha).score(batch)
    truth = truth_of(model, batch, alpha)
    assert truth.v.abs().max() > 1  # the shaping is there to be seen
    for check in CHECKS:
        check(scores.q, scores.v, batch.completion_mask, truth)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_logits_taken_one_row_late_fail_every_check(tiny_models, check):
    batch = rollouts()
    truth = truth_of(double(tiny_models("llama")), batch, 1.0)
    with pytest.raises(AssertionError, match="not close"):
        check(truth.late_q, truth.late_v, batch.completion_mask, truth)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_shift_of_a_states_logits_moves_rewards_but_no_group_relative_advantage(tiny_models, name):
    batch = rollouts()
    plain, (shifted, w) = double(tiny_models(name)), shifted_model(tiny_models(name))
    first, second = (Teacher(model, VOCABULARY).score(batch) for model in (plain, shifted))
    c = truth_of(plain, batch, 1.0).state @ w
    assert c.abs().max() > 0.5
    check_shift(first.q, first.v, second.q, second.v, batch.completion_mask, c)


def test_logits_taken_one_row_late_fail_the_shift_check(tiny_models):
    batch = rollouts()
    plain, (shifted, w) = double(tiny_models("llama")), shifted_model(tiny_models("llama"))
    first, second = (truth_of(model, batch, 1.0) for model in (plain, shifted))
    late = (first.late_q, first.late_v, second.late_q, second.late_v)
    with pytest.raises(AssertionError, match="not close"):
        check_shift(*late, batch.completion_mask, first.state @ w)


def test_log_softmax_instead_of_logits_loses_the_shaping(tiny_models):
    """Why raw logits: of normalised ones V is 0 everywhere, and bellman is logprob."""
    model, batch = double(tiny_models("llama")), rollouts()
    scores, mask = Teacher(model, VOCABULARY).score(batch), batch.completion_mask
    normalised = scores.q - scores.v
    assert_equal(
        token_rewards(normalised, torch.zeros_like(normalised), mask, form="bellman"),
        token_rewards(scores.q, scores.v, mask, form="logprob"),
    )


# ------------------------------------------------------------------------------ the definition, term by term


def slow_rewards(q: list[float], v: list[float], form: str, gamma: float) -> list[float]:
    """One unpadded completion, by the formulas."""
    rewards = []
    for h in range(len(q)):
        after = v[h + 1] if h + 1 < len(v) else 0.0
        reward = q[h] - v[h] if form == "logprob" else q[h] - gamma * after
        rewards.append(reward - v[0] if form == "bellman_centered" and h == 0 else reward)
    return rewards


# Logits of some models reach hundreds: nothing is clamped.
logits = st.floats(-500, 500)
completions = st.lists(st.lists(st.tuples(logits, logits), max_size=5), min_size=1, max_size=5)


@settings(max_examples=200)
@given(completions, st.sampled_from(FORMS), st.floats(0, 1), st.integers(0, 2))
def test_rewards_equal_the_formulas_whatever_the_padding_holds(rows, form, gamma, extra):
    width = max(map(len, rows)) + extra
    q, v = torch.full((2, len(rows), width), torch.nan, dtype=torch.float64)
    mask = torch.zeros(len(rows), width)
    for number, row in enumerate(rows):
        for column, (logit, value) in enumerate(row):
            q[number, column], v[number, column], mask[number, column] = logit, value, 1
    found = token_rewards(q, v, mask, form=form, gamma=gamma)
    wanted = torch.zeros_like(q)
    for number, row in enumerate(rows):
        wanted[number, : len(row)] = torch.tensor(
            slow_rewards([pair[0] for pair in row], [pair[1] for pair in row], form, gamma),
            dtype=torch.float64,
        )
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)
    outcome = torch.tensor([sum(logit - value for logit, value in row) for row in rows], dtype=torch.float64)
    torch.testing.assert_close(outcome_reward(q, v, mask), outcome, rtol=0, atol=1e-9)


def test_large_logits_are_not_clamped():
    q, v = torch.tensor([[700.0, -900.0]]), torch.tensor([[710.0, 805.0]])
    assert token_rewards(q, v, torch.ones(1, 2), form="bellman").tolist() == [[-105.0, -900.0]]


def test_a_single_token_gets_its_q_or_its_log_probability():
    q, v, mask = torch.tensor([[3.0]]), torch.tensor([[5.0]]), torch.ones(1, 1)
    assert {form: token_rewards(q, v, mask, form=form).item() for form in FORMS} == {
        "bellman": 3.0,
        "logprob": -2.0,
        "bellman_centered": -2.0,
    }


@pytest.mark.parametrize("width", [0, 3])
def test_completions_without_tokens_earn_nothing(width):
    q, mask = torch.randn(2, width), torch.zeros(2, width)
    for form in FORMS:
        assert token_rewards(q, q, mask, form=form).tolist() == [[0.0] * width] * 2
    assert outcome_reward(q, q, mask).tolist() == [0.0, 0.0]
    assert missing_eos(mask, torch.tensor([True, True]), 1.0).tolist() == [[0.0] * width] * 2


def test_the_penalty_falls_on_the_last_token_of_truncated_completions():
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0]])
    found = missing_eos(mask, torch.tensor([True, False, True, True]), 0.5)
    assert found.dtype == torch.float32
    assert found.tolist() == [[0, 0, -0.5], [0, 0, 0], [-0.5, 0, 0], [0, 0, 0]]


def test_truncated_and_finished_completions_are_valued_alike(tiny_models):
    """The same tokens earn the same, so that the difference is the penalty's alone."""
    batch = rollouts()
    scores = Teacher(double(tiny_models("llama")), VOCABULARY).score(batch)
    rewards = token_rewards(scores.q, scores.v, batch.completion_mask, form="bellman")
    cut = torch.ones(12, dtype=torch.bool)
    paid = rewards + missing_eos(batch.completion_mask, cut, 2.0)
    assert (paid - rewards).sum(1).tolist() == [
        -2.0 if kept else 0.0 for kept in batch.completion_mask.sum(1)
    ]


def test_wrong_arguments_are_refused():
    q, mask = torch.zeros(1, 2), torch.ones(1, 2)
    with pytest.raises(ValueError, match="bellman, logprob, bellman_centered, found 'soft'"):
        token_rewards(q, q, mask, form="soft")
    for gamma in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="gamma must be in"):
            token_rewards(q, q, mask, form="bellman", gamma=gamma)
    with pytest.raises(ValueError, match="padded on the right"):
        token_rewards(q, q, torch.tensor([[0, 1]]), form="logprob")
    with pytest.raises(ValueError, match="padded on the right"):
        missing_eos(torch.tensor([[0, 1]]), torch.tensor([True]), 1.0)
    with pytest.raises(ValueError, match="at least 0"):
        missing_eos(mask, torch.tensor([True]), -1.0)
