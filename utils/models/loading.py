"""Loading tokenizers and causal language models: full folders, LoRA adapter folders, hub names.

A checkpoint folder written by any stage is either a full model (``config.json``) or a PEFT adapter
(``adapter_config.json``), whose base is named in ``base_model_name_or_path``, relative to the repository
where it lies inside it. Nothing here runs code that comes with a model, and weights are read from
safetensors only.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from utils.common import REPO_ROOT, UserError, read_json, write_json
from utils.config import LoraSection, ModelSection

# TRL 1.16 still uses names that Transformers 5.23 is about to retire; nothing a user could do about it.
warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
transformers_logging.disable_progress_bar()  # the stages have their own bars


def device() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def located(name_or_path: str | Path) -> str:
    """A local folder as a path (relative ones against the repository), anything else as a hub name.

    Raises UserError for a path that looks local and is not there.
    """
    path = Path(name_or_path)
    local = path if path.is_absolute() else REPO_ROOT / path
    if local.is_dir():
        return str(local)
    if path.is_absolute() or str(name_or_path).startswith((".", "assets/", "outputs/")):
        raise UserError(f"{name_or_path}: no such model folder; check --name_or_path or --policy_ckpt")
    return str(name_or_path)


def portable(path: str) -> str:
    """``path`` relative to the repository where it lies inside it: what an adapter's config is to hold.

    Relative ones are hub names, or relative to the repository already.
    """
    inside = Path(path).is_absolute() and Path(path).resolve().is_relative_to(REPO_ROOT)
    return Path(path).resolve().relative_to(REPO_ROOT).as_posix() if inside else path


def adapter_base(folder: str | Path) -> str | None:
    """The base model's name if ``folder`` holds a PEFT adapter, else None."""
    config = Path(folder) / "adapter_config.json"
    if not config.is_file():
        return None
    return json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"]


def load_tokenizer(name_or_path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer, padding on the left as generation needs it.

    A tokenizer without a padding token pads with its end-of-sequence token; masks are always built from
    lengths here, so that a real end of sequence is never taken for padding.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(located(name_or_path), padding_side="left")
    except (OSError, ValueError) as error:
        raise UserError(f"{name_or_path}: no tokenizer could be loaded ({_first_line(error)})") from None
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"{name_or_path}: the tokenizer has no end-of-sequence token; set eos_token in its config"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_base(name_or_path: str | Path, section: ModelSection) -> PreTrainedModel:
    """A causal language model with all its weights, in the section's number format, on the device."""
    path = located(name_or_path)
    quantization = None
    if section.load_in_4bit:
        if not torch.cuda.is_available():
            raise UserError("load_in_4bit needs a CUDA GPU; set model.load_in_4bit: false")
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=getattr(torch, section.torch_dtype),
        )
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=getattr(torch, section.torch_dtype),
            attn_implementation=section.attn_implementation,
            quantization_config=quantization,
            use_safetensors=True,
        )
    except (OSError, ValueError) as error:
        raise UserError(f"{name_or_path}: no model could be loaded ({_first_line(error)})") from None
    model.config.name_or_path = portable(path)
    return model if quantization else model.to(device())


def load_policy(
    path: str | Path, section: ModelSection, trainable: bool = False
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
    """A policy and its tokenizer from a full model, an adapter folder or a hub name.

    ``trainable`` leaves an adapter's weights open to training. Otherwise the model is in evaluation mode, and
    an adapter is merged into its base, which doubles the speed of sampling (not into 4-bit weights, which
    would round it).
    """
    path = located(path)
    base = adapter_base(path)
    tokenizer = load_tokenizer(path)
    model = load_base(base or path, section)
    if base:
        model = PeftModel.from_pretrained(model, path, is_trainable=trainable)
        if not trainable and not section.load_in_4bit:
            model = model.merge_and_unload()
    return (model if trainable else model.eval()), tokenizer


def add_lora(model: PreTrainedModel, section: LoraSection, seed: int) -> PeftModel:
    """A fresh adapter on ``model``: A is random from ``seed``, B is zero, so the policy is unchanged until it
    is trained.
    """
    config = LoraConfig(
        r=section.r,
        lora_alpha=section.lora_alpha,
        lora_dropout=section.lora_dropout,
        target_modules=section.target_modules,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # nothing else has seeded the global generator before a trainer is built
        return get_peft_model(model, config)


def save_policy(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the policy (its adapter alone, where it has one) and the tokenizer: safetensors and JSON only.

    The same policy gives the same bytes in any process and in any clone of the repository.
    """
    extra = {"selected_adapters": ["default"]} if isinstance(model, PeftModel) else {}
    model.save_pretrained(folder, **extra)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    if adapter_base(folder):
        _write_adapter_config(folder / "adapter_config.json")
    tokenizer.save_pretrained(folder)


def _write_adapter_config(path: Path) -> None:
    """PEFT writes the base's absolute path, and sets of names in an order that changes between processes."""
    config = read_json(path)
    for key, value in config.items():
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            config[key] = sorted(value)
    config["base_model_name_or_path"] = portable(config["base_model_name_or_path"])
    write_json(path, config)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
