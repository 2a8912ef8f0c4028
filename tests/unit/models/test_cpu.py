"""What a CPU computes with: set where it is safe, left alone where it is not."""

import ctypes
from types import SimpleNamespace

import pytest
import torch

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


def test_narrow_models_keep_their_products(monkeypatch):
    asked = []
    monkeypatch.setattr(cpu, "keep_freed_memory", lambda: asked.append("memory"))
    monkeypatch.setattr(cpu, "use_fast_products", lambda: asked.append("products"))
    cpu.prepare_cpu(128)
    assert asked == ["memory"]
    cpu.prepare_cpu(576)
    assert asked == ["memory", "memory", "products"]
