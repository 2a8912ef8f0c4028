"""Gated layers that keep less: the same numbers to the bit, and fewer of them kept."""

import copy

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from tests.support.small_models import SIZES, VOCABULARY, build
from utils.models.gated_layers import keep_less


def gradients(model, ids):
    loss = model(ids, labels=ids).loss
    loss.backward()
    return loss, {name: each.grad for name, each in model.named_parameters() if each.requires_grad}


def kept_numbers(model, ids):
    """How many numbers the forward pass keeps, weights apart."""
    kept, weights = {}, {each.untyped_storage().data_ptr() for each in model.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        model(ids, labels=ids)
    return sum(tensor.numel() for tensor in kept.values())


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_values_and_gradients_are_the_same_to_the_bit(name, lora):
    plain = build(name, lora)
    lean = copy.deepcopy(plain)
    assert keep_less(lean) == SIZES["num_hidden_layers"]
    ids = torch.randint(2, VOCABULARY, (3, 11), generator=torch.Generator().manual_seed(0))
    (wanted, expected), (found, own) = gradients(plain, ids), gradients(lean, ids)
    assert torch.equal(wanted, found) and expected.keys() == own.keys()
    for each, gradient in expected.items():
        assert torch.equal(own[each], gradient), each


def test_the_product_and_the_activation_are_not_kept():
    plain = build("llama", lora=True)
    lean = copy.deepcopy(plain)
    keep_less(lean)
    ids = torch.randint(2, VOCABULARY, (3, 11), generator=torch.Generator().manual_seed(0))
    inner = ids.numel() * SIZES["intermediate_size"] * SIZES["num_hidden_layers"]
    # The hooks of the layer take the place of these ones, so gate and up alone are seen of it by either.
    assert kept_numbers(plain, ids) - kept_numbers(lean, ids) >= 2 * inner


def test_other_layers_are_left_alone():
    assert keep_less(build("gpt2")) == 0
