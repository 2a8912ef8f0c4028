"""A policy against its teacher: held to float64 sums over stock forward passes, position by position."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from utils.evaluation import distances as against
from utils.evaluation import token_values as values
from utils.frame.files import UserError
from utils.models.prefix import prefix_scoring
from utils.models.prefix.shared_prefix import CompletionBatch
from utils.statistics.accuracy_tests import bootstrap_ratios

PROMPTS = [[5, 6, 7, 8], [9, 10], [11, 12, 13], [5, 6, 7, 8, 9, 10]]
RESPONSES = [[20, 21, 1], [30], [40, 41, 42, 43, 1], []]
GOLD = [[20, 21, 1], [31, 32, 1], [50, 1], [60, 61]]


@pytest.fixture(scope="module")
def models(tiny_models):
    """Policy and teacher in float64, different; and the tokenizer's length."""
    policy = AutoModelForCausalLM.from_pretrained(tiny_models("llama"), dtype=torch.float64).eval()
    teacher = AutoModelForCausalLM.from_pretrained(tiny_models("llama"), dtype=torch.float64).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in teacher.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.05 * noise)
    return policy, teacher, len(AutoTokenizer.from_pretrained(tiny_models("llama")))


def token_sums(policy, teacher, batch, vocab):
    """The distances of each row's tokens, added up."""
    models = values.Models(policy, {"teacher": teacher}, vocab)
    table = values.token_values(models, batch)["distances/teacher"]
    ends = batch.completion_mask.sum(1).cumsum(0).tolist()[:-1]
    return np.array([rows.sum(0) for rows in np.split(table, ends)])


def compare(policy, teacher, vocab, prompts, texts, seed=0):
    """What metrics.json says of the texts."""
    models, rng = values.Models(policy, {"teacher": teacher}, vocab), np.random.default_rng(seed)
    found = values.values_of_texts(models, prompts, texts)
    return {name: against.against(of_items.values(), "teacher", rng) for name, of_items in found.items()}


def direct(policy, teacher, prompt, response, vocab):
    """NAMES summed over the response's tokens: one stock pass per model, then plain NumPy, token by token."""
    total = np.zeros(len(against.NAMES))
    if not response:
        return total
    with torch.no_grad():
        rows = [model(torch.tensor([prompt + response])).logits[0].numpy() for model in (policy, teacher)]
    for place in range(len(response)):
        f, g = (row[len(prompt) + place - 1, :vocab] for row in rows)
        q, p = (np.exp(x - x.max()) / np.exp(x - x.max()).sum() for x in (f, g))
        m = (p + q) / 2
        top_q, top_p = (set(np.argsort(-x)[:5]) for x in (f, g))
        a, b = f - f.mean(), g - g.mean()
        total += [
            (p * np.log(p / q)).sum(),
            (q * np.log(q / p)).sum(),
            ((p * np.log(p / m)).sum() + (q * np.log(q / m)).sum()) / 2,
            f.argmax() == g.argmax(),
            len(top_q & top_p) / 5,
            a @ b / np.sqrt((a @ a) * (b @ b)),
        ]
    return total


@pytest.mark.parametrize("vocab", [None, 100])
def test_every_number_equals_the_direct_one(models, vocab):
    policy, teacher, size = models
    size = vocab or size
    keep = [i for i, (p, r) in enumerate(zip(PROMPTS, RESPONSES, strict=True)) if max(p + r) < size]
    prompts = [PROMPTS[i] for i in keep]
    texts = {"on_responses": [RESPONSES[i] for i in keep], "on_gold": [GOLD[i] for i in keep]}
    found = compare(policy, teacher, size, prompts, texts)
    for name, rows in texts.items():
        expected = sum(direct(policy, teacher, p, r, size) for p, r in zip(prompts, rows, strict=True))
        tokens = sum(map(len, rows))
        assert (found[name]["tokens"], found[name]["items"]) == (tokens, len(rows))
        means = [found[name][key]["value"] for key in against.NAMES]
        np.testing.assert_allclose(means, expected / tokens, atol=1e-10, rtol=0)
        for key, value in zip(against.NAMES, means, strict=True):
            low, high = found[name][key]["ci95"]
            assert low <= value <= high and found[name][key]["n"] == len(rows)
    assert 0 < found["on_responses"]["top1_agreement"]["value"] < 1  # the test could see a difference


def test_what_padding_holds_changes_nothing(models):
    policy, teacher, size = models
    batch = CompletionBatch.of(PROMPTS, RESPONSES, torch.device("cpu"))
    clean = token_sums(policy, teacher, batch, size)
    for mask, ids in ((batch.prompt_mask, batch.prompt_ids), (batch.completion_mask, batch.completion_ids)):
        ids[mask == 0] = 77
    np.testing.assert_array_equal(token_sums(policy, teacher, batch, size), clean)
    np.testing.assert_array_equal(clean[3], 0)  # a row without response tokens
    one_by_one = [
        token_sums(policy, teacher, CompletionBatch.of([p], [r], torch.device("cpu")), size)[0]
        for p, r in zip(PROMPTS[:3], RESPONSES[:3], strict=True)
    ]
    np.testing.assert_allclose(clean[:3], one_by_one, atol=1e-12)


@pytest.mark.parametrize("obstacle", ["head_obstacle", "obstacle"])
def test_models_that_cannot_share_prefixes_give_the_same(models, monkeypatch, obstacle):
    policy, teacher, size = models
    batch = CompletionBatch.of(PROMPTS[:3], RESPONSES[:3], torch.device("cpu"))
    shared = token_sums(policy, teacher, batch, size)
    monkeypatch.setattr(prefix_scoring, obstacle, lambda model: "a reason")
    np.testing.assert_allclose(token_sums(policy, teacher, batch, size), shared, atol=1e-12)


def test_what_prompts_begin_with_is_run_once(models):
    """Two prompts with three texts: four tokens in common, then what is left of prompt and text."""
    policy, teacher, size = models
    shapes = []
    hook = policy.model.embed_tokens.register_forward_pre_hook(
        lambda _, given: shapes.append(tuple(given[0].shape))
    )
    prompts = [[5, 6, 7, 8, 9], [5, 6, 7, 8, 10, 11]]
    compare(policy, teacher, size, prompts, {"x": [[20, 21], [30, 1]], "y": [[20, 21], [31, 1]]})
    hook.remove()
    assert shapes == [(1, 4), (3, 3)]


def test_slices_and_pieces_do_not_matter(models, monkeypatch):
    policy, teacher, size = models
    arguments = (policy, teacher, size, PROMPTS, {"x": RESPONSES, "y": GOLD})
    whole = compare(*arguments)
    monkeypatch.setattr(values, "SLICE_TOKENS", 8)
    monkeypatch.setattr(values, "LOGIT_BYTES", 8 * size)
    pieces = compare(*arguments)
    for name in whole:
        for key in against.NAMES:
            assert pieces[name][key]["value"] == pytest.approx(whole[name][key]["value"], abs=1e-12)


def test_a_teacher_against_itself_is_at_distance_zero(models):
    _, teacher, size = models
    for dtype in (torch.float64, torch.float32):
        model = teacher.to(dtype)
        found = compare(model, copy.deepcopy(model), size, PROMPTS, {"x": RESPONSES})["x"]
        means = [found[name]["value"] for name in against.NAMES]
        np.testing.assert_allclose(means, [0, 0, 0, 1, 1, 1], atol=1e-6)
    teacher.to(torch.float64)


@given(st.integers(0, 2**31), st.integers(2, 40), st.floats(0.1, 200), st.floats(-50, 50))
def test_bounds_and_symmetry(seed, vocab, scale, shift):
    generator = torch.Generator().manual_seed(seed)
    f, g = scale * torch.randn(2, 6, vocab, generator=generator, dtype=torch.float64)
    at = against.TokenPrediction.of
    ab, ba = against.distances(at(f), at(g)), against.distances(at(g), at(f))
    assert torch.isfinite(ab).all()
    assert (ab[:, :3] >= 0).all() and (ab[:, 2] <= math.log(2) + 1e-12).all()
    assert ((ab[:, 3:5] >= 0) & (ab[:, 3:5] <= 1)).all() and (ab[:, 5].abs() <= 1 + 1e-9).all()
    torch.testing.assert_close(ab[:, 0], ba[:, 1])  # what is forward one way is reverse the other
    torch.testing.assert_close(ab[:, 2:], ba[:, 2:])
    torch.testing.assert_close(against.distances(at(f + shift), at(g)), ab, atol=1e-8, rtol=1e-8)


def test_texts_that_cannot_be_compared_are_left_out(models):
    policy, teacher, size = models
    prompts, texts = [[5, 6], [7] * 250, [8, 9], [4]], [[10, 1], [11] * 7, None, [size + 3]]
    found = values.values_of_texts(
        values.Models(policy, {"teacher": teacher}, size), prompts, {"x": texts, "y": [None] * 4}
    )
    assert list(found["x"]) == [0] and found["y"] == {}
    nothing = values.values_of_texts(
        values.Models(policy, {"teacher": teacher}, size), prompts, {"y": [None] * 4}
    )
    assert nothing == {"y": {}}
    found = compare(policy, teacher, size, prompts, {"x": texts, "y": [None] * 4})
    assert found["x"]["jsd"]["ci95"] is None  # one item has no spread
    assert found["y"] == {"items": 0, "tokens": 0}
    part = {"on_responses": found["x"] | {"left_out": 3}, "on_gold": found["y"] | {"left_out": 4}}
    said = against.distance_lines({"teacher": part})
    assert "3 items left out" in said[0] and "nothing to compare, 4 items left out" in said[1]


def test_a_policy_against_itself_is_at_0():
    """Rounding is not printed as a distance; a real one is."""
    part = {
        name: {"value": value} for name, value in zip(against.NAMES, (3e-8, 9e-7, 2e-6, 1, 1, 1), strict=True)
    }
    part |= {"items": 2, "tokens": 9, "left_out": 0}
    [line, _] = against.distance_lines({"reference": {"on_responses": part, "on_gold": part}})
    assert "agreement 100.0 %, forward KL 0, reverse KL 0, JSD 2e-06 nats per token" in line


def test_logits_that_are_not_finite_stop_it(models):
    policy, teacher, size = models
    norm = policy.model.norm.weight
    kept = norm.detach().clone()
    with torch.no_grad():
        norm[0] = float("nan")
    try:
        with pytest.raises(UserError, match="not finite for item 1.*--teacher_metrics false"):
            compare(policy, teacher, size, PROMPTS, {"x": GOLD})
    finally:
        with torch.no_grad():
            norm.copy_(kept)


def test_bootstrap_of_a_ratio_counts_items():
    rng = np.random.default_rng(3)
    weights = rng.integers(1, 40, 400).astype(float)
    noise = rng.normal(0, 1, 400)
    sums = (weights * (2 + noise))[:, None]
    (low, high), *_ = bootstrap_ratios(sums, weights, rng)
    estimate = sums.sum() / weights.sum()
    # Delta method: the spread of sum(w (x - ratio)) / sum(w).
    error = np.sqrt((weights**2 * (2 + noise - estimate) ** 2).sum()) / weights.sum()
    assert low < estimate < high and high - low == pytest.approx(2 * 1.96 * error, rel=0.05)


# ------------------------------------------------------------------------------------------- in stage 10
