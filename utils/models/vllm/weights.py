"""The weights that TRL sends to vLLM: those of the policy as it is, which is left as it is.

TRL 1.16 merges a LoRA adapter into its base in place, walks over the weights and takes the adapter out again.
Two things go wrong with that:

- vLLM packs up to 1 GiB of tensors, without copying any, before it sends them to a server (``pack_tensors``
  in vllm.distributed.weight_transfer). The adapter is out again before the last pack is sent: the server gets
  that part of the policy, of a small model all of it, without its adapter.
- Adding and subtracting rounds. In bfloat16 the frozen base drifts away, and the checkpoint, which is the
  adapter alone, is another policy than the one that was trained.

So an adapter is added to a copy here, one layer at a time. Where weights are sharded (FSDP, ZeRO-3) TRL's
walk is kept, since it gathers them, and its tensors are copied for a server.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from accelerate.utils import is_peft_model
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor

if TYPE_CHECKING:
    from trl.generation.vllm_generation import VLLMGeneration

Weights = Iterator[tuple[str, Tensor]]
CRITIC = "value_head."  # PPO's, which lies on the policy; vLLM refuses names that its model lacks


def send_policy(generation: VLLMGeneration) -> None:
    """Make these the weights that ``generation`` sends."""
    walk = generation._iter_named_params

    def named_params() -> Weights:
        sharded = generation._dist.is_fsdp or generation._dist.is_zero3
        if is_peft_model(generation.model) and not sharded:
            weights = merged_weights(generation.model)
        elif generation.mode == "server" and sharded:
            weights = ((name, value.clone()) for name, value in walk())
        else:
            weights = walk()
        return (pair for pair in weights if not pair[0].startswith(CRITIC))

    generation._iter_named_params = named_params


def merged_weights(model: PeftModel) -> Weights:
    """The weights of a LoRA policy under the names of its base model, its active adapters added to copies."""
    layers = {
        id(layer.get_base_layer().weight): layer for layer in model.modules() if isinstance(layer, LoraLayer)
    }
    for name, parameter in model.named_parameters():
        name = name.removeprefix("base_model.model.").replace(".base_layer", "")
        if model.prefix in name or "original_module" in name:
            continue
        value, layer = parameter.data, layers.get(id(parameter))
        if layer is not None:
            for adapter in layer.active_adapters:
                if adapter in layer.lora_A:
                    value = value + layer.get_delta_weight(adapter).to(value.dtype)
        yield name.replace("modules_to_save.default.", ""), value
