"""Loading tokenizers and causal language models: full folders, LoRA adapter folders, hub names.

A checkpoint folder written by any stage is either a full model (``config.json``) or a PEFT adapter
(``adapter_config.json``), whose base is named in ``base_model_name_or_path``, relative to the repository
where it lies inside it. Nothing here runs code that comes with a model, and weights are read from
safetensors only.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from huggingface_hub.errors import StrictDataclassError
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available
from transformers.utils import logging as transformers_logging

from utils.data.prompts import PromptFormat, set_prompt_format
from utils.frame.files import REPO_ROOT, UserError, first_line, read_json, write_json
from utils.frame.shortages import shortage
from utils.models import four_bits
from utils.models.adapter_files import base_of_adapter
from utils.models.cpu import prepare_cpu
from utils.models.settings import LoraSection, ModelSection

logger = logging.getLogger(__name__)

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
    base = base_of_adapter(Path(folder))
    return base if base is None or _is_there(base) else _moved_along(Path(folder), base) or base


def _is_there(path: str) -> bool:
    return (REPO_ROOT / path).is_dir()


def _moved_along(folder: Path, base: str) -> str | None:
    """The base of an adapter whose run was moved or renamed: the same path below a folder that holds both."""
    parts = Path(base).parts
    for parent in folder.resolve().parents:
        for start in range(1, len(parts)):
            found = parent.joinpath(*parts[start:])
            if (found / "config.json").is_file():
                return str(found)
    return None


def reason(error: Exception) -> str:
    """What an error says, or the error behind a checked configuration's, which is the clearer."""
    return first_line(error.__cause__ or error if isinstance(error, StrictDataclassError) else error)


@contextlib.contextmanager
def whole(name: str | Path, what: str) -> Iterator[None]:
    """Let whatever a library raises of a damaged or made-up folder be a UserError; not what means that memory
    or disk has run out.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if shortage(error):
            raise
        raise UserError(f"{name}: no {what} could be loaded ({reason(error)})") from None


def other_class(config: PreTrainedConfig) -> str | None:
    """The class that a configuration's weights are for, where that is no causal language model; else None.

    Another class has an encoder, or no language-model head in its weights: a new one would be random.
    """
    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type, ())
    known = {causal} if isinstance(causal, str) else set(causal)
    held = getattr(config, "architectures", None) or sorted(known)
    if known & set(held) and not config.is_encoder_decoder:
        return None
    return held[0] if held else config.model_type


def load_tokenizer(name_or_path: str | Path, section: ModelSection | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer, padding on the left as generation needs it, rendering prompts as ``section`` says.

    A tokenizer without a padding token pads with its end-of-sequence token; masks are always built from
    lengths here, so that a real end of sequence is never taken for padding.

    Raises UserError where there is none, it has no end-of-sequence token, or its chat template refuses a
    plain question.
    """
    with whole(name_or_path, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(
            located(name_or_path), padding_side="left", trust_remote_code=False
        )
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"{name_or_path}: the tokenizer has no end-of-sequence token; set eos_token in its config"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    section = section or ModelSection()
    prompt_format = PromptFormat(section.system_prompt, section.chat_template_kwargs, section.prompt_date)
    try:
        set_prompt_format(tokenizer, prompt_format)
    except ValueError as error:
        raise UserError(
            f"{name_or_path}: {error}; see model.system_prompt and model.chat_template_kwargs"
        ) from None
    return tokenizer


def number_format(section: ModelSection) -> torch.dtype:
    """The format of the weights: as the section says, or under ``auto`` what the device computes fast.

    That is bfloat16 on GPUs that have it (compute capability 8.0 and above), float16 on older ones and
    float32 on the CPU, where training is to be the same on every execution.
    """
    if section.torch_dtype != "auto":
        return getattr(torch, section.torch_dtype)
    if device().type == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def attention(section: ModelSection) -> str | None:
    """Transformers' ``attn_implementation``; None leaves the choice to it (sdpa where the model has it).

    FlashAttention, where it is asked for and cannot run, gives way to sdpa and says so. It is never chosen by
    ``auto``: it takes no mask of our own, so prompts would not be shared, which gains more than it does.
    """
    asked = section.attn_implementation
    if asked == "auto":
        return None
    reason = _flash_obstacle(asked, number_format(section)) if asked.startswith("flash_attention") else None
    if reason is None:
        return asked
    logger.warning("attention sdpa instead of %s: %s", asked, reason)
    return "sdpa"


def _flash_obstacle(name: str, dtype: torch.dtype) -> str | None:
    installed = {
        "flash_attention_2": is_flash_attn_2_available,
        "flash_attention_3": is_flash_attn_3_available,
    }
    if device().type == "cpu":
        return "it needs a GPU"
    if not installed.get(name, lambda: True)():
        return "the package flash-attn is not installed"
    return "it computes in bfloat16 or float16" if dtype == torch.float32 else None


def load_base(
    name_or_path: str | Path, section: ModelSection, device_map: str | dict | None = None
) -> PreTrainedModel:
    """A causal language model with all its weights, in the section's number format.

    It lies on this process's device, or where ``device_map`` says (Accelerate's: a device, "auto",
    "balanced", "sequential", or a mapping of modules to devices). In 4 bits (NF4, its scales quantised as
    well, as in QLoRA, arXiv 2305.14314) it computes in the number format.
    """
    path = located(name_or_path)
    dtype = number_format(section)
    quantization = None
    if section.load_in_4bit:
        four_bits.bring_back()
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    with whole(name_or_path, "model"):
        model, found = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            attn_implementation=attention(section),
            quantization_config=quantization,
            device_map=device_map,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    if lacking := sorted(found["missing_keys"]):  # they would be random
        raise UserError(
            f"{name_or_path}: {len(lacking)} of the model's weights are missing, such as {lacking[0]}"
        )
    if device().type == "cpu":
        prepare_cpu(getattr(model.config.get_text_config(), "hidden_size", 0))
    four_bits.leave_packing_alone(model)
    model.config.name_or_path = portable(path)
    model.generation_config = plain_generation_config(model)
    if device_map:
        _return_outputs(model)
    return model if quantization or device_map else model.to(device())


def plain_generation_config(model: PreTrainedModel) -> GenerationConfig:
    """The model's special tokens and nothing else of its ``generation_config.json``.

    What a folder ships besides (repetition penalties, temperatures) would move sampling away from the
    policy's distribution, and some of it Transformers refuses to save again.
    """
    shipped = model.generation_config
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return GenerationConfig(**{name: getattr(shipped, name) for name in names})


def _return_outputs(model: PreTrainedModel) -> None:
    """Let backbone and head of a model on other devices fetch their inputs, and return what they compute to
    where these were: they are called one by one here, and Accelerate does so for the whole model only.
    """
    skipped = model._skip_keys_device_placement  # the cache stays with its layers
    first = input_device(model)
    for module in (model.base_model, model.get_output_embeddings()):
        if hasattr(module, "_hf_hook"):
            module._hf_hook.io_same_device = True
        else:
            weight = getattr(module, "weight", None)
            place = first if weight is None or weight.is_meta else weight.device
            hook = AlignDevicesHook(execution_device=place, io_same_device=True, skip_keys=skipped)
            add_hook_to_module(module, hook)


def input_device(model: torch.nn.Module) -> torch.device:
    """Where a model's token ids go: its embedding's device, or where that is brought to compute."""
    embedding = model.get_input_embeddings()
    execution = getattr(getattr(embedding, "_hf_hook", None), "execution_device", None)
    return embedding.weight.device if execution is None else torch.device(execution)


def load_policy(
    path: str | Path,
    section: ModelSection,
    trainable: bool = False,
    device_map: str | dict | None = None,
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
    """A policy and its tokenizer from a full model, an adapter folder or a hub name.

    ``trainable`` leaves an adapter's weights open to training. Otherwise the model is in evaluation mode, and
    an adapter is merged into its base, which doubles the speed of sampling (not into 4-bit weights, which
    would round it). ``device_map`` is that of `load_base`.
    """
    path = located(path)
    base = adapter_base(path)
    tokenizer = load_tokenizer(path, section)
    model = load_base(base or path, section, device_map)
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise UserError(
            f"{path}: the tokenizer has {len(tokenizer)} tokens, the model has embeddings for {rows}: "
            "they do not belong together"
        )
    if base:
        with whole(path, "adapter"), warnings.catch_warnings():
            warnings.filterwarnings("error", "Found missing adapter keys")  # they would be a fresh adapter's
            model = PeftModel.from_pretrained(model, path, is_trainable=trainable)
        if not trainable and not section.load_in_4bit:
            model = model.merge_and_unload()
    return (model if trainable else model.eval()), tokenizer


def add_lora(model: PreTrainedModel, section: LoraSection, seed: int) -> PeftModel:
    """A fresh adapter on ``model``: A is random from ``seed``, B is zero, so the policy is unchanged until it
    is trained.
    """
    settings = asdict(section)
    del settings["enabled"]
    config = LoraConfig(**settings, task_type="CAUSAL_LM")
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # nothing else has seeded the global generator before a trainer is built
        return get_peft_model(model, config)


def save_policy(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write the policy (its adapter alone, where it has one) and the tokenizer: safetensors and JSON only.

    ``weights`` are the model's, where it holds but a part of them. The same policy gives the same bytes in
    any process and in any clone of the repository.
    """
    extra = {"selected_adapters": ["default"]} if isinstance(model, PeftModel) else {}
    model.save_pretrained(folder, state_dict=weights, **extra)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    if (path := folder / "adapter_config.json").is_file():
        # PEFT writes the base's absolute path, and sets of names in an order that changes between processes.
        config = read_json(path)
        for key, value in config.items():
            if isinstance(value, list) and all(isinstance(item, str) for item in value):
                config[key] = sorted(value)
        write_json(path, config | {"base_model_name_or_path": portable(config["base_model_name_or_path"])})
    tokenizer.save_pretrained(folder)
