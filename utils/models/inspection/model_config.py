"""Configurations of the model tier written from a model's architecture (inspect_model_architecture.py)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from utils.frame.files import REPO_ROOT
from utils.frame.typed_settings import changed
from utils.models.inspection.architecture import Architecture
from utils.models.inspection.resources import MICRO_BATCH, SAMPLED, ResourceEstimate, estimate
from utils.models.settings import (
    GenerationSection,
    LoraSection,
    MetadataSection,
    ModelConfig,
    ModelSection,
    TrainingSection,
    ValidationSection,
)

FOLDER = REPO_ROOT / "configs" / "models"
DEFAULT_RANK = 16  # of adapters


@dataclass(frozen=True)
class Known:
    """A model whose configuration is shipped: a teacher with the same tokenizer, and its licence.

    ``max_new_tokens`` None: as many as for any model.
    """

    name: str
    teacher: str
    license: str
    rank: int = DEFAULT_RANK
    max_new_tokens: int | None = None
    description: str = ""


KNOWN = {
    "qwen2.5-0.5b": Known("Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-1.5B-Instruct", "Apache-2.0", 32),
    "qwen2.5-1.5b": Known("Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen2.5-7B-Instruct", "Apache-2.0"),
    "qwen2.5-3b": Known("Qwen/Qwen2.5-3B-Instruct", "Qwen/Qwen2.5-7B-Instruct", "Qwen Research License"),
    "qwen2.5-7b": Known("Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-32B-Instruct", "Apache-2.0"),
    "qwen2.5-32b": Known(
        "Qwen/Qwen2.5-32B-Instruct",
        "Qwen/Qwen2.5-32B-Instruct",
        "Apache-2.0",
        description="the teacher of the 7B model, to evaluate it by itself",
    ),
    "qwen2.5-math-7b": Known("Qwen/Qwen2.5-Math-7B", "Qwen/Qwen2.5-32B", "Apache-2.0"),
    "llama-3.2-1b": Known(
        "meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-3B", "Llama 3.2 Community License"
    ),
    "llama-3.2-1b-ultrafast": Known(
        "meta-llama/Llama-3.2-1B",
        "meta-llama/Llama-3.2-3B",
        "Llama 3.2 Community License",
        rank=8,
        max_new_tokens=128,
        description="small adapters and short answers, for a first run",
    ),
    "llama-3.2-3b": Known(
        "meta-llama/Llama-3.2-3B", "meta-llama/Llama-3.1-8B", "Llama 3.2 Community License"
    ),
    "llama-3.2-1b-instruct": Known(
        "meta-llama/Llama-3.2-1B-Instruct", "meta-llama/Llama-3.2-3B-Instruct", "Llama 3.2 Community License"
    ),
    "llama-3.2-3b-instruct": Known(
        "meta-llama/Llama-3.2-3B-Instruct", "meta-llama/Llama-3.1-8B-Instruct", "Llama 3.2 Community License"
    ),
    "llama-3.1-8b-instruct": Known(
        "meta-llama/Llama-3.1-8B-Instruct",
        "meta-llama/Llama-3.1-70B-Instruct",
        "Llama 3.1 Community License",
    ),
    "llama-3-8b": Known(
        "meta-llama/Meta-Llama-3-8B", "meta-llama/Meta-Llama-3-70B", "Meta Llama 3 Community License"
    ),
    "tinyllama-1.1b": Known(
        "TinyLlama/TinyLlama-1.1B-Chat-v1.0", "meta-llama/Llama-2-7b-chat-hf", "Apache-2.0"
    ),
    "dialogpt-medium": Known("microsoft/DialoGPT-medium", "microsoft/DialoGPT-large", "MIT"),
}
LARGE_TEACHERS = re.compile("(32B|70B)(-|$)")  # they are loaded in 4 bits


def file_stem(name_or_path: str) -> str:
    """A file name for a model: the last part of its name, in small letters."""
    return re.sub(r"[^a-z0-9.]+", "-", Path(name_or_path).name.lower()).strip("-.") or "model"


class _Dumper(yaml.SafeDumper):
    """Mappings one key a line, lists within a line."""

    def represent_list(self, data: list) -> yaml.Node:
        return self.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True)


_Dumper.add_representer(list, _Dumper.represent_list)


def config_text(
    found: Architecture, known: Known | None = None, estimated: ResourceEstimate | None = None
) -> str:
    """The YAML file for ``found``, what is not the default: prompt and answer within its positions, LoRA on
    every linear layer.
    """
    known = known or Known(found.name, found.name, "")
    estimated = estimated or estimate(found, known.rank)
    room = int(min(found.positions, 2560))
    new_tokens = min(known.max_new_tokens or 512, room // 3)
    config = ModelConfig(
        model=ModelSection(
            name_or_path=known.name,
            teacher_name_or_path=known.teacher,
            load_in_4bit=estimated.load_in_4bit,
            teacher_load_in_4bit=LARGE_TEACHERS.search(known.teacher) is not None,
            max_prompt_length=room - 512 if room > 1024 else room - new_tokens,
        ),
        lora=LoraSection(r=known.rank, lora_alpha=2 * known.rank, target_modules=list(found.targets)),
        training=TrainingSection(
            gradient_checkpointing=estimated.gradient_checkpointing,
            max_micro_batch=MICRO_BATCH,
            save_steps=50,
            logging_steps=5,
        ),
        validation=ValidationSection(eval_steps=50, num_items=256),
        generation=GenerationSection(max_new_tokens=new_tokens, batch_size=SAMPLED),
        metadata=MetadataSection(
            description=known.description or "not run by us yet",
            license=known.license,
            parameters=found.parameters,
            hardware=estimated.hardware.name,
            memory_gb=estimated.memory_gb,
            hours=estimated.hours,
        ),
    )
    about = f"# {known.name}: {found.kind}, {found.layers} layers, width {found.hidden}."
    body = yaml.dump(changed(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    estimates = "  # Estimates by the formulas of docs/models.md, nothing measured.\n  hardware:"
    return f"{about}\n{body}".replace("  hardware:", estimates)


def summary(estimated: ResourceEstimate) -> str:
    """What a user is told of the estimates, in one line."""
    form = "4 bits" if estimated.load_in_4bit else "bfloat16"
    form += ", gradient checkpointing" if estimated.gradient_checkpointing else ""
    memory = ", ".join(f"{stage} {value:g} GB" for stage, value in estimated.memory_gb.items())
    hours = ", ".join(f"{stage} {value:g} h" for stage, value in estimated.hours.items())
    return f"estimated for {estimated.hardware.name}, LoRA in {form}: {memory}; {hours}"
