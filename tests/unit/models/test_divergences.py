"""Divergences against a direct float64 implementation, and what they must satisfy."""

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from assets.pretrain import gold_document
from utils.data.prompts import completion_ids, render_prompt
from utils.frame.files import REPO_ROOT
from utils.models.divergences import (
    Measure,
    exact_divergence,
    log_divergence,
    teacher_top_k,
    top_k_divergence,
    top_one_and_entropy,
)
from utils.models.prefix import prefix_scoring
from utils.models.prefix.shared_prefix import CompletionBatch, completion_states, output_head

N, VOCAB, PADDED = 9, 23, 26  # tokens; columns of the tokenizer; columns of the heads
MEASURES = [
    Measure("forward_kl"),
    Measure("reverse_kl"),
    Measure("jsd"),
    Measure("jsd", beta=0.1),
    Measure("jsd", beta=0.9, temperature=2.0),
    Measure("forward_kl", temperature=3.0),
    Measure("reverse_kl", temperature=0.5),
]


def named(measure: Measure) -> str:
    return f"{measure.kind}-{measure.beta:g}-T{measure.temperature:g}"


def models(seed=0, bias=False):
    """States and heads of a student of width 6 and a teacher of width 8; padding columns are large."""
    draw = torch.Generator().manual_seed(seed)
    found = []
    for width in (6, 8):
        head = nn.Linear(width, PADDED, bias=bias)
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=draw))
            head.weight[VOCAB:] *= 50
        found += [torch.randn(N, width, generator=draw), head]
    return found


def direct(student, own, teacher, other, measure: Measure, k=None):
    """The divergences by their formulas, float64 [N], in NumPy."""

    def log_probs(states, head):
        logits = states.double().numpy() @ head.weight.detach().double().numpy().T
        if head.bias is not None:
            logits = logits + head.bias.detach().double().numpy()
        logits = logits[:, :VOCAB] / measure.temperature
        logits = logits - logits.max(1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(1, keepdims=True))

    s, t = log_probs(student, own), log_probs(teacher, other)
    if k is not None and k < VOCAB:
        order = np.argsort(-t, axis=1, kind="stable")
        s, t = (np.take_along_axis(part, order, 1) for part in (s, t))
        s, t = (
            np.concatenate([part[:, :k], np.log(np.exp(part[:, k:]).sum(1, keepdims=True))], 1)
            for part in (s, t)
        )
    p, q = np.exp(t), np.exp(s)
    if measure.kind == "forward_kl":
        found = (p * (t - s)).sum(1)
    elif measure.kind == "reverse_kl":
        found = (q * (s - t)).sum(1)
    else:
        m = np.log(measure.beta * p + (1 - measure.beta) * q)
        found = measure.beta * (p * (t - m)).sum(1) + (1 - measure.beta) * (q * (s - m)).sum(1)
    return found * measure.temperature**2


def direct_gradients(student, own, teacher, other, measure, weights, k=None):
    """Central differences of the direct implementation in float64, for states and head of the student."""
    found = []
    for target in (student, own.weight):
        flat = target.detach().double().clone()
        gradient = torch.zeros_like(flat)
        for place in np.ndindex(*flat.shape):
            sides = []
            for step in (1e-5, -1e-5):
                moved = flat.clone()
                moved[place] += step
                if target is student:
                    values = direct(moved, own, teacher, other, measure, k)
                else:
                    head = nn.Linear(*reversed(flat.shape), bias=own.bias is not None).double()
                    head.weight.data = moved
                    if own.bias is not None:
                        head.bias.data = own.bias.data.double()
                    values = direct(student, head, teacher, other, measure, k)
                sides.append((values * weights.double().numpy()).sum())
            gradient[place] = (sides[0] - sides[1]) / 2e-5
        found.append(gradient)
    return found


def measured(student, own, teacher, other, measure, k=None):
    if k is None:
        return exact_divergence(student, own, teacher, other, measure, VOCAB)
    top = teacher_top_k(teacher, other, k, measure.temperature, VOCAB)
    return top_k_divergence(student, own, top, measure, VOCAB)


# ------------------------------------------------------------------------------- against the formulas


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("k", [None, 1, 5, VOCAB, 99])
@pytest.mark.parametrize("measure", MEASURES, ids=named)
def test_values_are_those_of_the_formulas(measure, k, bias):
    """Padding columns of the heads, which are large, have no part in them."""
    student, own, teacher, other = models(bias=bias)
    found = measured(student, own, teacher, other, measure, k)
    expected = direct(student, own, teacher, other, measure, k)
    assert np.abs(found.detach().double().numpy() - expected).max() <= 1e-6 * max(1, expected.max())
    assert expected.mean() > 1e-3


@pytest.mark.parametrize("k", [None, 1, 5])
@pytest.mark.parametrize("measure", MEASURES, ids=named)
def test_gradients_are_those_of_the_formulas(measure, k):
    student, own, teacher, other = models(1)
    weights = torch.linspace(0.2, 1, N) / N
    student.requires_grad_()
    teacher.requires_grad_()
    (measured(student, own, teacher, other, measure, k) * weights).sum().backward()
    expected = direct_gradients(student.detach(), own, teacher.detach(), other, measure, weights, k)
    for found, wanted in zip((student.grad, own.weight.grad), expected, strict=True):
        assert (found.double() - wanted).abs().max() <= 1e-6
        assert wanted.abs().max() > 1e-3
    assert not own.weight.grad[VOCAB:].any()
    assert teacher.grad is None and other.weight.grad is None


@pytest.mark.parametrize("k", [None, 4])
def test_pieces_change_nothing(monkeypatch, k):
    """Logits are made in pieces of tokens, and in the exact case of columns too."""
    results = []
    for small in (False, True):
        if small:
            monkeypatch.setattr(prefix_scoring, "LOGIT_BYTES", 4 * PADDED * 2)
            monkeypatch.setattr("trl.kernels.chunked_divergence.TOKEN_CHUNK_SIZE", 4)
            monkeypatch.setattr("trl.kernels.chunked_divergence.VOCAB_CHUNK_SIZE", 5)
        student, own, teacher, other = models(2)
        student.requires_grad_()
        found = measured(student, own, teacher, other, Measure("jsd", 0.3, 1.5), k)
        found.square().sum().backward()
        top = top_one_and_entropy(teacher, other, VOCAB)
        results.append((found.detach(), student.grad, own.weight.grad, *top))
    for whole, pieces in zip(*results, strict=True):
        torch.testing.assert_close(pieces, whole, rtol=1e-5, atol=1e-6)


def test_likeliest_token_and_entropy():
    student, own, _, _ = models(3)
    likeliest, entropy = top_one_and_entropy(student, own, VOCAB)
    logits = (student @ own.weight.T)[:, :VOCAB].double()
    expected = torch.distributions.Categorical(logits=logits)
    assert torch.equal(likeliest, logits.argmax(-1))
    torch.testing.assert_close(entropy.double(), expected.entropy(), rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------ properties

logits = st.lists(st.floats(-12, 12), min_size=7, max_size=7)
kinds = st.sampled_from(["forward_kl", "reverse_kl", "jsd"])
betas = st.floats(0.01, 0.99)


def normal(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).log_softmax(-1)


@given(logits, logits, kinds, betas)
def test_never_negative_zero_for_equals_and_jsd_bounded(own, other, kind, beta):
    s, t, measure = normal(own), normal(other), Measure(kind, beta)
    found = float(log_divergence(t, s, measure))
    assert found >= -1e-12
    assert float(log_divergence(t, t, measure)) == pytest.approx(0, abs=1e-12)
    if kind == "jsd":
        assert found <= -beta * math.log(beta) - (1 - beta) * math.log(1 - beta) + 1e-12
        swapped = float(log_divergence(s, t, Measure("jsd", 1 - beta)))
        assert found == pytest.approx(swapped, abs=1e-12)


@given(logits, logits)
def test_the_kls_are_each_other_with_the_models_swapped(own, other):
    s, t = normal(own), normal(other)
    forward = float(log_divergence(t, s, Measure("forward_kl")))
    assert forward == pytest.approx(float(log_divergence(s, t, Measure("reverse_kl"))), abs=1e-12)


def test_jsd_shrinks_to_nothing_beside_the_kls_it_leads_to():
    """The jump of scale: jsd / beta tends to the forward KL, jsd / (1 - beta) to the reverse KL."""
    s, t = normal([0.3, 1.0, -0.5, 0.1, 0.2, -1.0, 0.7]), normal([1.0, 0.2, 0.3, -0.8, 0.5, 0.4, -0.2])
    forward, reverse = (float(log_divergence(t, s, Measure(kind))) for kind in ("forward_kl", "reverse_kl"))
    near_0, near_1 = (float(log_divergence(t, s, Measure("jsd", beta))) for beta in (1e-4, 1 - 1e-4))
    assert near_0 / 1e-4 == pytest.approx(forward, rel=1e-3)
    assert near_1 / 1e-4 == pytest.approx(reverse, rel=1e-3)
    assert near_0 < 1e-3 * forward and near_1 < 1e-3 * reverse
    assert Measure("forward_kl", 0.3).trl_beta == 0 and Measure("reverse_kl", 0.3).trl_beta == 1


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl"])
def test_temperature_squared_keeps_the_size_of_gradients(kind):
    """At high temperatures the gradient is (z_S - z_T) / V for centred logits, whatever the temperature."""
    head = nn.Linear(VOCAB, VOCAB, bias=False)
    nn.init.eye_(head.weight)
    z_s, z_t = (torch.randn(2, N, VOCAB, generator=torch.Generator().manual_seed(0))).unbind()
    z_s, z_t = z_s - z_s.mean(-1, keepdim=True), z_t - z_t.mean(-1, keepdim=True)
    z_s.requires_grad_()
    for temperature in (20.0, 200.0):
        measure = Measure(kind, temperature=temperature)
        gradient = torch.autograd.grad(exact_divergence(z_s, head, z_t, head, measure, VOCAB).sum(), z_s)[0]
        difference = (gradient - (z_s - z_t) / VOCAB).abs().max() / gradient.abs().max()
        assert difference < 5 / temperature


@given(logits, logits, kinds, betas, st.floats(0.3, 4))
def test_top_k_grows_to_the_exact_divergence(own, other, kind, beta, temperature):
    """Merging outcomes never adds divergence, so every further token brings it closer, up to all of them."""
    head = nn.Linear(7, 7, bias=False).double()
    nn.init.eye_(head.weight)
    s, t = (torch.tensor([values], dtype=torch.float64) for values in (own, other))
    measure = Measure(kind, beta, temperature)
    found = [
        top_k_divergence(s, head, teacher_top_k(t, head, k, temperature, 7), measure, 7).item()
        for k in range(1, 8)
    ]
    assert all(later >= earlier - 1e-9 for earlier, later in zip(found, found[1:], strict=False))
    exact = log_divergence((t / temperature).log_softmax(-1), (s / temperature).log_softmax(-1), measure)
    assert found[-1] == pytest.approx(float(exact) * temperature**2, abs=1e-9)


def test_a_tail_far_below_rounding_is_kept():
    """1 - sum of the k likeliest would be 0 in float32, and its logarithm infinite."""
    head = nn.Linear(5, 5, bias=False)
    nn.init.eye_(head.weight)
    t = torch.tensor([[60.0, 50.0, 0.0, 0.0, 0.0]])
    s = torch.tensor([[0.0, 0.0, 2.0, 0.0, 0.0]], requires_grad=True)
    for kind in ("forward_kl", "reverse_kl", "jsd"):
        measure = Measure(kind)
        found = top_k_divergence(s, head, teacher_top_k(t, head, 2, 1.0, 5), measure, 5)
        gradient = torch.autograd.grad(found.sum(), s)[0]
        assert found.isfinite().all() and gradient.isfinite().all() and found.item() > 0.1


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"kind": "jsd", "beta": 0.0}, "jsd needs beta between 0 and 1"),
        ({"kind": "jsd", "beta": 1.0}, "jsd needs beta between 0 and 1"),
        ({"kind": "forward_kl", "temperature": 0.0}, "temperature must be above 0"),
        ({"kind": "forward_kl", "temperature": math.inf}, "temperature must be above 0"),
    ],
)
def test_impossible_measures(settings_, message):
    with pytest.raises(ValueError, match=message):
        Measure(**settings_)
    assert Measure("reverse_kl", beta=1.0).kind == "reverse_kl"  # only jsd has a mixture


# --------------------------------------------------------------------------------- the embedded teacher


@pytest.fixture(scope="module")
def embedded():
    """States and heads of the embedded student and teacher before the tokens of 24 gold answers."""
    models = [
        AutoModelForCausalLM.from_pretrained(REPO_ROOT / "assets" / name, dtype=torch.float32)
        for name in ("student", "teacher")
    ]
    tokenizer = AutoTokenizer.from_pretrained(REPO_ROOT / "assets" / "teacher")
    draw = random.Random(0)
    documents = [gold_document(draw, set()) for _ in range(24)]
    prompts = [render_prompt(tokenizer, text) for (text, _), _ in documents]
    prompt_ids = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    answers = completion_ids(tokenizer, [text for _, (text, _) in documents])
    batch = CompletionBatch.of(prompt_ids, answers, torch.device("cpu"))
    with torch.no_grad():
        found = [(completion_states(model, batch), output_head(model)) for model in models]
    return [*found[0], *found[1], len(tokenizer)]


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
def test_top_k_of_the_embedded_teacher_converges(embedded, kind):
    """Shares of the exact divergence at k = 1, 4, 16, 64, 256; docs/distillation.md states them."""
    student, own, teacher, other, vocab = embedded
    measure = Measure(kind)
    exact = exact_divergence(student, own, teacher, other, measure, vocab)
    shares = []
    for k in (1, 4, 16, 64, 256, vocab):
        top = teacher_top_k(teacher, other, k, 1.0, vocab)
        found = top_k_divergence(student, own, top, measure, vocab)
        assert (found <= exact + 1e-4).all()
        shares.append((found.mean() / exact.mean()).item())
    assert all(later >= earlier - 1e-6 for earlier, later in zip(shares, shares[1:], strict=False))
    assert shares[-1] == pytest.approx(1, abs=1e-5) and shares[0] > 0.5
