"""What a model is made of, from its configuration alone: no weights are loaded.

The model is built on the meta device, where tensors have shapes and no contents, so that a 32B model takes as
long as a small one and whatever Transformers knows is read from the model itself.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from accelerate import init_empty_weights
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from utils.frame.files import UserError
from utils.models.loading import located, other_class, reason
from utils.models.prefix.shared_prefix import obstacle, position_limit


@dataclass(frozen=True)
class Linear:
    """The linear layers of one name: how many, and the widths of their inputs and outputs, added up."""

    count: int
    inputs: int
    outputs: int


@dataclass(frozen=True)
class Architecture:
    """A causal language model's sizes.

    name         as it was asked for: a folder or hub name
    kind         Transformers' model_type
    parameters   all weights, tied ones once
    linear       the weights of `targets`
    targets      name of linear layers inside the blocks -> what they are like; what LoRA adapts
    layers, hidden, vocabulary, positions   positions are infinite where the configuration names no limit
    cache_width  key and value numbers that a token leaves in each layer's cache
    unshared     why prefixes cannot be shared (utils/models/prefix/shared_prefix.py), or None
    untargeted   weights of the blocks that are in no linear layer, norms aside: experts fused into one tensor
    """

    name: str
    kind: str
    parameters: int
    linear: int
    targets: dict[str, Linear]
    layers: int
    hidden: int
    vocabulary: int
    positions: float
    cache_width: int
    unshared: str | None
    untargeted: int

    def lora_parameters(self, rank: int) -> int:
        """Weights of an adapter on every target."""
        return sum(rank * (found.inputs + found.outputs) for found in self.targets.values())


def inspect_model(name_or_path: str | Path) -> Architecture:
    """The architecture of a local folder or hub name.

    Raises UserError where there is no configuration, it cannot be built, or it is no causal language model
    with linear layers in blocks.
    """
    name = str(name_or_path)
    try:
        config = AutoConfig.from_pretrained(located(name), trust_remote_code=False)
    except UserError:
        raise
    except Exception as error:  # whatever a damaged file brings a library to raise
        raise UserError(f"{name}: no model configuration found ({reason(error)})") from None
    if other := other_class(config):
        raise UserError(f"{name}: no causal language model but {other}; nothing here could train it")
    try:
        with init_empty_weights(include_buffers=True):
            model = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # whatever a made-up configuration brings a model's constructor to raise
        raise UserError(f"{name}: its configuration describes no model ({reason(error)})") from None
    config = model.config.get_text_config()
    targets = lora_targets(model)
    layers = getattr(config, "num_hidden_layers", 0)
    if not targets or layers < 1 or model.get_output_embeddings() is None:
        raise UserError(f"{name}: its configuration describes no transformer with linear layers")
    heads = config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    head_width = getattr(config, "head_dim", None) or config.hidden_size // heads
    # Matrices are linear layers and embeddings; experts are stacked.
    stacked = (each.numel() for each in model.base_model.parameters() if each.dim() > 2)
    return Architecture(
        name=name,
        kind=config.model_type,
        parameters=model.num_parameters(),
        linear=sum(module.weight.numel() for modules in targets.values() for module in modules),
        targets={
            target: Linear(len(modules), *map(sum, zip(*map(_shape, modules), strict=True)))
            for target, modules in targets.items()
        },
        layers=layers,
        hidden=config.hidden_size,
        vocabulary=config.vocab_size,
        positions=position_limit(model),
        cache_width=2 * key_heads * head_width,
        unshared=obstacle(model),
        untargeted=sum(stacked),
    )


def lora_targets(model: PreTrainedModel) -> dict[str, list[nn.Module]]:
    """Name -> modules of the linear layers that LoRA adapts: all but the head and the routers of experts.

    Linear layers are torch's and GPT-2's (a transposed one). A router has an output for each expert; adapters
    on it would unbalance what pre-training has balanced.
    """
    config = model.config.get_text_config()
    experts = {
        getattr(config, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts")
    }
    found: dict[str, list[nn.Module]] = defaultdict(list)
    for path, module in model.named_modules():
        if not isinstance(module, (nn.Linear, Conv1D)) or module is model.get_output_embeddings():
            continue
        if _shape(module)[1] not in experts - {None}:
            found[path.rsplit(".", 1)[-1]].append(module)
    return dict(found)


def _shape(module: nn.Module) -> tuple[int, int]:
    """Numbers in and out."""
    rows, columns = module.weight.shape
    return (rows, columns) if isinstance(module, Conv1D) else (columns, rows)
