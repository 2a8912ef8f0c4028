"""The head on taught tokens only, against TRL's own fused head: same outputs, same gradients."""

import copy

import pytest
import torch
from trl.trainer.utils import add_fused_lm_head

from tests.support.small_models import CONFIGS, VOCABULARY, build
from utils.models.prefix.shared_prefix import unwrapped
from utils.models.taught_tokens import score_taught_tokens_only

FIELDS = ("log_probs", "entropy", "is_top1")
LENGTHS, TAUGHT = [9, 7, 12, 4], [3, 1, 5, 0]


def batch():
    """Rows padded on the right, of which the last tokens are taught; the last row teaches nothing."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, VOCABULARY, (len(LENGTHS), max(LENGTHS)), generator=generator)
    place, length = torch.arange(max(LENGTHS)), torch.tensor(LENGTHS)[:, None]
    taught = (place < length) & (place >= length - torch.tensor(TAUGHT)[:, None])
    return {
        "input_ids": ids.masked_fill(place >= length, 0),
        "attention_mask": (place < length).long(),
        "labels": ids.masked_fill(~taught, -100),
    }


def outputs_and_gradients(model, inputs):
    found = model(**inputs, fused_lm_head=True)
    (-found.log_probs.sum() + 0.1 * found.entropy.sum()).backward()
    gradients = {name: each.grad for name, each in model.named_parameters() if each.requires_grad}
    return found, gradients


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_and_gradients_are_those_of_trls_head(name, attention, lora):
    stock = build(name, lora, attention)
    ours = copy.deepcopy(stock)
    add_fused_lm_head(unwrapped(stock), outputs=FIELDS)
    add_fused_lm_head(unwrapped(ours), outputs=FIELDS)
    score_taught_tokens_only(ours, outputs=FIELDS)
    (wanted, gradients), (found, own) = (outputs_and_gradients(model, batch()) for model in (stock, ours))
    assert torch.equal(found.label_mask, wanted.label_mask) and int(found.label_mask.sum()) == sum(TAUGHT)
    for field in FIELDS:
        torch.testing.assert_close(getattr(found, field), getattr(wanted, field), rtol=1e-5, atol=1e-5)
    for each, gradient in gradients.items():
        torch.testing.assert_close(own[each], gradient, rtol=1e-4, atol=1e-4, msg=each)


def test_only_taught_positions_reach_the_head(monkeypatch):
    from trl.trainer import utils as trl_utils

    model, rows, apply = build("llama"), [], trl_utils._ChunkedLogProbFunction.apply
    monkeypatch.setattr(
        trl_utils._ChunkedLogProbFunction,
        "apply",
        lambda hidden, *others: rows.append(len(hidden)) or apply(hidden, *others),
    )
    score_taught_tokens_only(model, outputs=FIELDS)
    model(**batch(), fused_lm_head=True)
    assert rows == [sum(TAUGHT)]


def test_a_batch_that_teaches_nothing_has_a_gradient_of_zero():
    """Fillers alone, in one of several processes."""
    model = build("llama", lora=True)
    score_taught_tokens_only(model, outputs=FIELDS)
    inputs = batch()
    inputs["labels"] = torch.full_like(inputs["labels"], -100)
    found, gradients = outputs_and_gradients(model, inputs)
    assert not found.log_probs.any() and all(not each.any() for each in gradients.values())


def test_other_calls_are_the_models_own():
    plain = build("llama")
    model = copy.deepcopy(plain)
    score_taught_tokens_only(model, outputs=FIELDS)
    inputs = {name: value for name, value in batch().items() if name != "labels"}
    assert torch.equal(model(**inputs).logits, plain(**inputs).logits)
