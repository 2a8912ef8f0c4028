"""What a CPU computes with: memory that is kept, the faster library for products, keys that are not repeated.

All are process-wide, and set where a model is loaded (`utils/models/loading.py`): so every stage has them.
"""

from __future__ import annotations

import ctypes
import functools
import math
import os

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

# glibc's mallopt: parameters, and values that a C int holds.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
NEVER, LARGEST = -1, 2**30
WIDE = 512  # hidden size from which products are large enough to gain; the embedded models are narrower
EXACT = 1e-5  # relative error of a product in float32; bfloat16 has 1e-3
# Weights times tokens of a micro-batch, about a second of one core's training. With less the fixed costs of a
# micro-batch show; with more only padding and activations grow.
ENOUGH_WORK = 2e10


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory for the next tensor; return whether it does.

    Tensors of megabytes that live for one operation are otherwise mapped, zeroed page by page and unmapped
    each time: a third of the time of training. The process holds its peak until it ends.
    ``MALLOC_MMAP_THRESHOLD_`` or ``MALLOC_TRIM_THRESHOLD_`` in the environment win. Only glibc has this;
    nothing happens elsewhere.
    """
    if "MALLOC_MMAP_THRESHOLD_" in os.environ or "MALLOC_TRIM_THRESHOLD_" in os.environ:
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST)) and bool(mallopt(M_TRIM_THRESHOLD, NEVER))


@functools.cache
def use_fast_products() -> bool:
    """Let oneDNN compute float32 products in place of MKL, if that is exact here; return whether it does.

    MKL leaves half of an AMD processor's vector width unused: oneDNN was 2.3 times as fast on one with
    AVX-512, one thread. PyTorch hands float32 products over to it only where bfloat16 would be allowed
    inside them. oneDNN makes use of that on processors with AMX alone; there, and wherever a trial product
    is not exact to float32's rounding, all stays as it was.
    """
    settings = torch.backends.mkldnn.matmul
    if not torch.backends.mkldnn.is_available() or torch.cpu._is_amx_tile_supported():
        return False
    before, settings.fp32_precision = settings.fp32_precision, "bf16"
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(WIDE, WIDE, generator=generator) for _ in range(2))
    wanted = left.double() @ right.double()
    exact = bool((left @ right - wanted).abs().max() < EXACT * wanted.abs().max())
    if not exact:
        settings.fp32_precision = before
    return exact


def grouped_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs
) -> tuple[Tensor, None]:
    """Transformers' ``sdpa``; on a CPU, under a mask, keys and values of grouped heads are not repeated.

    The queries of a group, [B, H, W, D], become those of one head, [B, H / G, G * W, D], which sees the mask
    G times. Values are the same to rounding; a decoding step's attention takes a fifth of the time.
    """
    groups = query.shape[1] // key.shape[1]
    unusual = any(kwargs.get(name) is not None for name in ("softcap", "position_bias", "cache"))
    if (
        query.device.type != "cpu"
        or groups == 1
        or attention_mask is None
        or attention_mask.shape[1] != 1
        or kwargs.get("dropout")
        or unusual
    ):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    found = nn.functional.scaled_dot_product_attention(
        query.unflatten(1, (-1, groups)).flatten(2, 3),
        key,
        value,
        attn_mask=attention_mask.repeat(1, 1, groups, 1),
        scale=kwargs.get("scaling"),
    )
    return found.unflatten(2, (groups, -1)).flatten(1, 2).transpose(1, 2).contiguous(), None


def rows_worth_a_pass(weights: int, tokens: float) -> int:
    """The rows of ``tokens`` tokens on average from which a larger micro-batch gains nothing on a CPU."""
    return max(1, math.ceil(ENOUGH_WORK / (weights * tokens)))


def prepare_cpu(hidden_size: int) -> None:
    """All of it, for a model of this width. Narrow models keep MKL, and with it their results' bytes."""
    keep_freed_memory()
    AttentionInterface.register("sdpa", grouped_attention)
    if hidden_size >= WIDE:
        use_fast_products()
