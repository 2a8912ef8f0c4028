"""bitsandbytes, left out until 4 bits or its optimizers are asked for.

PEFT imports it wherever it is installed, which costs each stage a second of processor time, and on a CPU it
prints that it found no kernels.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # every script imports this, and most of them no torch
    from torch import nn

NAME = "bitsandbytes"
# Modules that import it, as bnb, where they find it when they are imported themselves.
IMPORTERS = ("trl.generation.vllm_generation", "transformers.integrations.bitsandbytes")


def leave_out() -> None:
    """Let libraries that are imported from now on find it missing, unless it has been imported already."""
    sys.modules.setdefault(NAME, None)


def bring_back() -> None:
    """Let it be found after all, also by libraries that have looked for it already."""
    if sys.modules.get(NAME, NAME) is not None:
        return
    del sys.modules[NAME]
    import peft.import_utils
    import transformers.utils.import_utils

    for found in (
        peft.import_utils.is_bnb_available,
        peft.import_utils.is_bnb_4bit_available,
        transformers.utils.import_utils.is_bitsandbytes_available,
    ):
        found.cache_clear()
    bitsandbytes = importlib.import_module(NAME)
    for name in IMPORTERS:
        if name in sys.modules:
            sys.modules[name].bnb = bitsandbytes


def leave_packing_alone(model: nn.Module) -> None:
    """Keep a model's 4-bit weights as they are stored.

    On a CPU with AVX512-BF16 bitsandbytes repacks them in place at the first pass without a gradient. That
    fails on layers narrower than its blocks, and results would depend on the kind of CPU.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
