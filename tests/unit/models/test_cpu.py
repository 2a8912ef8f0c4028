"""What a CPU computes with: set where it is safe, left alone where it is not."""

import ctypes
from types import SimpleNamespace

import pytest
import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from utils.models import cpu


@pytest.fixture
def no_environment(monkeypatch):
    for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def products():
    settings, before = torch.backends.mkldnn.matmul, torch.backends.mkldnn.matmul.fp32_precision
    cpu.use_fast_products.cache_clear()
    yield settings
    settings.fp32_precision = before
    cpu.use_fast_products.cache_clear()


def library(monkeypatch, **functions):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(**functions))


def test_freed_memory_is_kept(monkeypatch, no_environment):
    asked = {}
    library(monkeypatch, mallopt=lambda parameter, value: asked.update({parameter: value}) or 1)
    assert cpu.keep_freed_memory() and asked == {-3: 2**30, -1: -1}


def test_without_glibc_nothing_happens(monkeypatch, no_environment):
    library(monkeypatch)
    assert not cpu.keep_freed_memory()


@pytest.mark.parametrize("name", ["MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"])
def test_the_environment_wins(monkeypatch, no_environment, name):
    library(monkeypatch, mallopt=lambda *_: pytest.fail("asked all the same"))
    monkeypatch.setenv(name, "131072")
    assert not cpu.keep_freed_memory()


def test_fast_products_are_exact_or_not_used(products):
    used = cpu.use_fast_products()
    assert products.fp32_precision == ("bf16" if used else "none")
    left, right = torch.randn(2, 700, 700, generator=torch.Generator().manual_seed(1))
    wanted = left.double() @ right.double()
    assert (left @ right - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_products_that_are_not_exact_are_not_used(products, monkeypatch):
    monkeypatch.setattr(cpu, "EXACT", 0.0)
    before = products.fp32_precision
    assert not cpu.use_fast_products() and products.fp32_precision == before


def test_processors_that_would_round_are_not_tried(products, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert not cpu.use_fast_products() and products.fp32_precision != "bf16"


@pytest.mark.parametrize("queries", [1, 5], ids=["one query", "several"])
@pytest.mark.parametrize("heads", [(4, 4), (6, 2)], ids=["plain heads", "grouped heads"])
def test_grouped_attention_is_transformers_own(heads, queries):
    """Values and gradients to rounding, under a mask that differs from row to row."""
    generator = torch.Generator().manual_seed(2)
    shapes = [(2, heads[0], queries, 8), (2, heads[1], 9, 8), (2, heads[1], 9, 8)]
    inputs = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    mask = torch.rand(2, 1, queries, 9, generator=generator) < 0.6
    mask[..., 0] = True
    module = SimpleNamespace(num_key_value_groups=heads[0] // heads[1], is_causal=True)
    upstream = torch.randn(2, queries, heads[0], 8, generator=generator)
    results = []
    for attention in (sdpa_attention_forward, cpu.grouped_attention):
        found, _ = attention(module, *inputs, mask, dropout=0.0, scaling=0.3)
        results.append((found, *torch.autograd.grad(found, inputs, upstream)))
    for wanted, found in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_grouped_attention_copies_no_keys(monkeypatch):
    seen, product = [], torch.nn.functional.scaled_dot_product_attention

    def recorded(query, key, value, **kwargs):
        seen.append((key.data_ptr(), tuple(key.shape)))
        return product(query, key, value, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", recorded)
    query, key = torch.randn(2, 6, 5, 8), torch.randn(2, 2, 9, 8)
    mask = torch.ones(2, 1, 5, 9, dtype=torch.bool)
    module = SimpleNamespace(num_key_value_groups=3, is_causal=True)
    cpu.grouped_attention(module, query, key, key, mask, scaling=0.3)
    assert seen == [(key.data_ptr(), (2, 2, 9, 8))]


def test_narrow_models_keep_their_products(monkeypatch):
    asked = []
    monkeypatch.setattr(cpu, "keep_freed_memory", lambda: asked.append("memory"))
    monkeypatch.setattr(cpu, "use_fast_products", lambda: asked.append("products"))
    cpu.prepare_cpu(128)
    assert AttentionInterface()["sdpa"] is cpu.grouped_attention
    assert asked == ["memory"]
    cpu.prepare_cpu(576)
    assert asked == ["memory", "memory", "products"]


def test_micro_batches_of_a_large_model_are_small_and_those_of_a_small_one_whole():
    assert cpu.rows_worth_a_pass(134_500_000, 212) == 1
    assert cpu.rows_worth_a_pass(134_500_000, 40) == 4  # 4 rows are 0.02 T weights times tokens, 3 are not
    assert cpu.rows_worth_a_pass(960_000, 150) > 128
