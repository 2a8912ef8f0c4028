"""The model tier (configs/models/*.yaml): models, adapters, training, validation, sampling, folders.

Where TRL, PEFT or Transformers has an argument for something, the key has its name.
"""

import dataclasses
import datetime
from dataclasses import dataclass
from typing import Any, Literal

from utils.data.prompts import DATE
from utils.frame.config import PathsSection
from utils.frame.typed_settings import setting
from utils.models.older_form import supervised, without_older

AUTO_BATCH = 64  # completions that generation.batch_size auto begins with


@dataclass
class ModelSection:
    """Which models, and how they are loaded."""

    name_or_path: str = setting("assets/student", "policy: a local folder or a hub name", path=True)
    teacher_name_or_path: str = setting("assets/teacher", "teacher: a local folder or a hub name", path=True)
    torch_dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "auto", "weights' number format; auto: bfloat16 or float16 as the GPU has it, float32 on a CPU"
    )
    load_in_4bit: bool = setting(False, "QLoRA: load the frozen weights in 4 bits (NF4)")
    teacher_load_in_4bit: bool = setting(False, "load the teacher in 4 bits (NF4)")
    teacher_device_map: str = setting(
        "", "where the teacher lies: a device (cuda:1), auto: over all GPUs; empty: beside the policy"
    )
    attn_implementation: str = setting(
        "auto", "attention kernel, as Transformers names it; auto: sdpa where the model has it, else eager"
    )
    max_prompt_length: int = setting(256, "longest prompt, tokens", at_least=1)
    system_prompt: str = setting(
        "", "the system turn of the chat template; empty: the template's own, if any"
    )
    chat_template_kwargs: dict[str, Any] = setting(
        {}, "arguments of the chat template, such as {enable_thinking: false} for Qwen 3"
    )
    prompt_date: str = setting(DATE, "the day that a chat template is told when it asks, for every run alike")

    def validate(self) -> None:
        datetime.date.fromisoformat(self.prompt_date)


@dataclass
class LoraSection:
    """Low-rank adapters (PEFT's LoraConfig)."""

    enabled: bool = setting(True, "train adapters; false trains all weights")
    r: int = setting(16, "rank", at_least=1)
    lora_alpha: int = setting(32, "scale is lora_alpha / r", at_least=1)
    lora_dropout: float = setting(0.0, "dropout on the adapters' input", between=(0, 0.99))
    target_modules: Literal["all-linear"] | list[str] = setting("all-linear", "which linear layers")


@dataclass
class TrainingSection:
    """What every trainer shares (Transformers' TrainingArguments)."""

    gradient_checkpointing: bool = setting(False, "recompute activations to save memory")
    max_micro_batch: int | None = setting(
        None,
        "most sequences a device trains on at once; the batch stays that of the algorithm tier",
        at_least=1,
    )
    max_grad_norm: float = setting(1.0, "gradient-norm clip", at_least=0)
    optim: str = setting("adamw_torch", "optimizer, as Transformers names it")
    save_steps: int = setting(20, "steps (RL, distillation: rollouts) between resume points", at_least=1)
    logging_steps: int = setting(1, "steps (RL, distillation: rollouts) between log rows", at_least=1)
    dataloader_num_workers: int = setting(0, "worker processes for batches", at_least=0)
    report_to: list[Literal["tensorboard", "wandb", "trackio", "none"]] = setting(
        [], "trackers besides the JSONL log (docs/tokens.md for their keys); empty or none: no other"
    )

    @property
    def trackers(self) -> list[str]:
        """The trackers, without the word for none."""
        return [name for name in self.report_to if name != "none"]

    def validate(self) -> None:
        if "none" in self.report_to and self.trackers:
            raise ValueError(f"report_to must name trackers or none, not both, found {self.report_to}")


@dataclass
class ValidationSection:
    """Validation by generation and reward during training."""

    eval_steps: int = setting(20, "steps (RL, distillation: rollouts) between validations", at_least=1)
    num_items: int = setting(
        128, "validation items generated for; 0: no validation, best is the last checkpoint", at_least=0
    )
    num_saved_samples: int = setting(8, "generations written out per validation", at_least=0)


@dataclass
class GenerationSection:
    """Sampling (Transformers' GenerationConfig)."""

    max_new_tokens: int = setting(72, "longest completion, tokens", at_least=1)
    temperature: float = setting(1.0, "sampling temperature; log-probabilities use the same", above=0)
    top_p: float = setting(1.0, "nucleus: keep the smallest set with this probability", above=0, at_most=1)
    top_k: int = setting(0, "keep the k likeliest tokens; 0 keeps all", at_least=0)
    batch_size: int | Literal["auto"] = setting(
        128,
        "completions generated at once; auto: what fits into memory, of training micro-batches as well",
        at_least=1,
    )

    @property
    def largest_batch(self) -> int:
        """Completions generated at once where memory allows."""
        return AUTO_BATCH if self.batch_size == "auto" else self.batch_size


@dataclass
class VllmSection:
    """Sampling by vLLM, which TRL drives (TRL's vllm_* arguments, without that prefix; docs/vllm.md)."""

    use_vllm: bool = setting(False, "let vLLM sample in 03 distill, 04, 05, 06, 07 and 10, where installed")
    mode: Literal["colocate", "server"] = setting(
        "colocate", "in this process and on its GPU, or on a server started with vllm serve"
    )
    server_base_url: str = setting("http://localhost:8000", "server: where it listens")
    server_timeout: float = setting(240.0, "server: seconds to wait until it is up", at_least=0)
    group_port: int = setting(51216, "server: port that weights are sent through", between=(1, 65535))
    gpu_memory_utilization: float = setting(
        0.3, "colocate: share of the GPU's memory that vLLM takes", above=0, at_most=1
    )
    tensor_parallel_size: int = setting(
        1, "colocate: processes that share one copy of the weights", at_least=1
    )
    max_model_length: int | None = setting(
        None,
        "colocate: longest prompt with completion, tokens; null: what the limits on both add up to",
        at_least=1,
    )
    enable_sleep_mode: bool = setting(False, "colocate: give the GPU's memory back between rollouts")
    importance_sampling_correction: bool = setting(
        True, "05, 06: weigh the policy's loss by its probabilities over vLLM's"
    )
    importance_sampling_mode: Literal[
        "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"
    ] = setting("sequence_mask", "the weight's unit, and whether one out of bounds is cut off or set to 0")
    importance_sampling_clip_max: float | None = setting(
        3.0, "upper bound of the weight; null for none", at_least=0
    )
    importance_sampling_clip_min: float | None = setting(
        None, "lower bound of the weight; null for none", at_least=0
    )

    def validate(self) -> None:
        if not self.server_base_url.startswith(("http://", "https://")):
            raise ValueError(f"server_base_url must begin with http(s)://, found {self.server_base_url}")
        low, high = self.importance_sampling_clip_min, self.importance_sampling_clip_max
        if low is not None and high is not None and low >= high:
            raise ValueError(
                f"importance_sampling_clip_min must be below its clip_max, found {low} and {high}"
            )
        if low is None and high is None and "truncate" in self.importance_sampling_mode:
            mode = self.importance_sampling_mode
            raise ValueError(
                f"importance_sampling_mode {mode} needs importance_sampling_clip_max or clip_min"
            )


@dataclass
class TeacherCacheSection:
    """The teacher's scores of completions seen before (utils/models/score_cache.py)."""

    capacity_mb: float = setting(
        64.0, "memory for them, MB (10^6 bytes); 0 switches the cache off", at_least=0
    )
    eviction: Literal["lru", "lfu", "fifo"] = setting(
        "lru", "dropped first when full: least recently used, least frequently used, oldest"
    )
    folder: str = setting("", "folder shared between runs; empty: kept in resume points only", path=True)


@dataclass
class MetadataSection:
    """For people; nothing reads it."""

    description: str = setting("", "what this configuration is for")
    license: str = setting("", "licence of the model")
    parameters: int = setting(0, "weights of the model, adapters not counted")
    hardware: str = setting("", "what the estimates below are for")
    memory_gb: dict[str, float] = setting({}, "estimated peak memory by stage, GB (docs/models.md)")
    hours: dict[str, float] = setting({}, "estimated wall-clock time by stage, hours (docs/models.md)")


@dataclass
class ModelConfig:
    """The model tier: configs/models/*.yaml."""

    model: ModelSection = dataclasses.field(default_factory=ModelSection)
    lora: LoraSection = dataclasses.field(default_factory=LoraSection)
    training: TrainingSection = dataclasses.field(default_factory=TrainingSection)
    validation: ValidationSection = dataclasses.field(default_factory=ValidationSection)
    generation: GenerationSection = dataclasses.field(default_factory=GenerationSection)
    vllm: VllmSection = dataclasses.field(default_factory=VllmSection)
    teacher_cache: TeacherCacheSection = dataclasses.field(default_factory=TeacherCacheSection)
    paths: PathsSection = dataclasses.field(default_factory=PathsSection)
    metadata: MetadataSection = dataclasses.field(default_factory=MetadataSection)

    from_older = staticmethod(without_older)
    supervised = staticmethod(supervised)
