"""The policy that a training stage starts from, ready to be trained."""

from __future__ import annotations

from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from utils.frame.files import derive_seed
from utils.frame.stage import StageContext
from utils.models.loading import add_lora, load_policy
from utils.training.inputs import is_named, start_path


def load_start(ctx: StageContext) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
    """Policy and tokenizer: the run's SFT policy, or what ``--policy_ckpt`` or ``--start`` names.

    The run's own SFT policy has an adapter if it was trained so.
    """
    if is_named(ctx.config):
        return load_named(start_path(ctx), ctx)
    return load_policy(start_path(ctx), ctx.config.model.model, trainable=True)


def load_named(
    path: Path | str, ctx: StageContext
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
    """Policy and tokenizer of a named model: an adapter is trained further, any other model gets a fresh one,
    unless ``lora.enabled`` is off.
    """
    config = ctx.config.model
    model, tokenizer = load_policy(path, config.model, trainable=True)
    if config.lora.enabled and not isinstance(model, PeftModel):
        model = add_lora(model, config.lora, derive_seed(ctx.seed, "lora"))
    return model, tokenizer
