"""The head on taught tokens only: TRL's fused head without logits of prompts and padding, on a CPU too."""

from __future__ import annotations

import functools
import types

from torch import nn
from trl.trainer import utils as trl_utils

from utils.models.prefix.shared_prefix import MASKED_ATTENTION, obstacle, unwrapped


def score_taught_tokens_only(model: nn.Module, outputs: tuple[str, ...]) -> None:
    """Let ``model(labels=…, fused_lm_head=True)`` score only positions whose next label is not -100.

    TRL's own scores every position on a CPU and drops most of them afterwards: prompts and padding can cost
    as much there as the layers' backward pass. Call this once TRL's trainer has added its head. Shapes and
    values of the output (`FusedCausalLMOutput`, of the fields in ``outputs``) are TRL's.

    A causal model needs no mask over padding on the right, which no taught token sees; without one, attention
    reads grouped keys and values as they are. Rows must be padded on the right, as SFTTrainer pads them.
    """
    model = unwrapped(model)
    _add_compact_head(model, outputs=outputs)
    fused = model.forward
    unmasked = obstacle(model) is None and model.config._attn_implementation in MASKED_ATTENTION

    @functools.wraps(type(model).forward)
    def forward(self, *args, fused_lm_head=False, **kwargs):
        if fused_lm_head and unmasked and "output_router_logits" not in kwargs:
            kwargs["attention_mask"] = None
        return fused(*args, fused_lm_head=fused_lm_head, **kwargs)

    model.forward = types.MethodType(forward, model)


# TRL leaves positions out where Triton runs, and scores all of them elsewhere, as some compilers want shapes
# that stay the same. Its own function, which asks for Triton for this one purpose, is told that it is there.
_add_compact_head = types.FunctionType(
    trl_utils.add_fused_lm_head.__code__,
    vars(trl_utils) | {"_use_triton": lambda device: True},
    argdefs=trl_utils.add_fused_lm_head.__defaults__,
)
