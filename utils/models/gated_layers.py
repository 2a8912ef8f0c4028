"""Gated feed-forward layers, which hold most of a layer's activations, keep less for the backward pass."""

from __future__ import annotations

import types

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import silu

# Layers whose forward pass is down_proj(act_fn(gate_proj(x)) * up_proj(x)), and no more.
KNOWN = {"LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP"}


class GatedProduct(torch.autograd.Function):
    """silu(gate) * up, keeping the two and not silu(gate) as well."""

    @staticmethod
    def forward(ctx, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return silu(gate) * up

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(gradient * up, gate), gradient * silu(gate)


def keep_less(model: nn.Module) -> int:
    """Let the model's gated layers compute their product again in the backward pass; return how many do.

    Of four tensors of the layer's inner width two are kept. Values and gradients are the same to the bit: the
    same operations run on the same numbers. Not for gradient checkpointing, which keeps less still.
    """
    layers = [module for module in model.modules() if type(module).__name__ in KNOWN]
    layers = [layer for layer in layers if getattr(layer.config, "hidden_act", None) == "silu"]
    for layer in layers:
        layer.forward = types.MethodType(_forward, layer)
    return len(layers)


def _forward(self: nn.Module, x: Tensor) -> Tensor:
    gate, up = self.gate_proj(x), self.up_proj(x)
    if not (torch.is_grad_enabled() and gate.requires_grad):
        return self.down_proj(silu(gate) * up)
    product = GatedProduct.apply(gate, up)
    place, gate, up = product.untyped_storage().data_ptr(), gate.detach(), up.detach()

    def pack(tensor: Tensor) -> Tensor | torch.Size:
        return tensor.shape if tensor.untyped_storage().data_ptr() == place else tensor

    def unpack(kept: Tensor | torch.Size) -> Tensor:
        return kept if isinstance(kept, Tensor) else (silu(gate) * up).view(kept)

    with saved_tensors_hooks(pack, unpack):
        return self.down_proj(product)
