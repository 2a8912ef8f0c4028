"""The four configuration tiers (model, algo, dataset, reward) as typed dataclasses, read from YAML.

Where TRL, PEFT or Transformers has an argument for something, the key has its name. A method's
hyper-parameters (the algo tier) and the reward specification live beside the code that uses them.
"""

import dataclasses
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from utils.common import REPO_ROOT, UserError, resolve_path, shown
from utils.typed import Text, build, leaf_keys, setting, suggestion

__all__ = [
    "DatasetConfig",
    "GenerationSection",
    "LoraSection",
    "MetadataSection",
    "ModelConfig",
    "ModelSection",
    "PathsSection",
    "StageConfig",
    "TeacherCacheSection",
    "TrainingSection",
    "ValidationSection",
    "VllmSection",
    "load_tier",
    "setting",
]

T = TypeVar("T")

AUTO_BATCH = 64  # completions that generation.batch_size auto begins with


def _at_least(minimum: float, **values: float | None) -> None:
    for name, value in values.items():
        if value is not None and value < minimum:
            raise ValueError(f"{name} must be at least {minimum}, found {value}")


def _within(low: float, high: float, **values: float) -> None:
    for name, value in values.items():
        if not low <= value <= high:
            raise ValueError(f"{name} must be between {low} and {high}, found {value}")


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
    max_prompt_length: int = setting(512, "longest prompt, tokens")

    def validate(self) -> None:
        _at_least(1, max_prompt_length=self.max_prompt_length)


@dataclass
class LoraSection:
    """Low-rank adapters (PEFT's LoraConfig)."""

    enabled: bool = setting(True, "train adapters; false trains all weights")
    r: int = setting(16, "rank")
    lora_alpha: int = setting(32, "scale is lora_alpha / r")
    lora_dropout: float = setting(0.0, "dropout on the adapters' input")
    target_modules: Literal["all-linear"] | list[str] = setting("all-linear", "which linear layers")

    def validate(self) -> None:
        _at_least(1, r=self.r, lora_alpha=self.lora_alpha)
        _within(0, 0.99, lora_dropout=self.lora_dropout)


@dataclass
class TrainingSection:
    """What every trainer shares (Transformers' TrainingArguments)."""

    gradient_checkpointing: bool = setting(False, "recompute activations to save memory")
    max_micro_batch: int | None = setting(
        None, "most sequences a device trains on at once; the batch stays that of the algorithm tier"
    )
    max_grad_norm: float = setting(1.0, "gradient-norm clip")
    optim: str = setting("adamw_torch", "optimizer, as Transformers names it")
    save_steps: int = setting(20, "optimizer steps (in 05 and 06: rollouts) between resume points")
    logging_steps: int = setting(5, "optimizer steps (in 05 and 06: rollouts) between log rows")
    dataloader_num_workers: int = setting(0, "worker processes for batches")
    report_to: list[Literal["tensorboard", "wandb", "trackio", "none"]] = setting(
        [], "trackers besides the JSONL log (docs/tokens.md for their keys); empty or none: no other"
    )

    @property
    def trackers(self) -> list[str]:
        """The trackers, without the word for none."""
        return [name for name in self.report_to if name != "none"]

    def validate(self) -> None:
        _at_least(1, save_steps=self.save_steps, logging_steps=self.logging_steps)
        _at_least(1, max_micro_batch=self.max_micro_batch)
        _at_least(0, max_grad_norm=self.max_grad_norm, dataloader_num_workers=self.dataloader_num_workers)
        if "none" in self.report_to and self.trackers:
            raise ValueError(f"report_to must name trackers or none, not both, found {self.report_to}")


@dataclass
class ValidationSection:
    """Validation by generation and reward during training."""

    eval_steps: int = setting(25, "optimizer steps (in 05 and 06: rollouts) between validations")
    num_items: int = setting(128, "validation items generated for")
    num_saved_samples: int = setting(8, "generations written out per validation")

    def validate(self) -> None:
        _at_least(1, eval_steps=self.eval_steps, num_items=self.num_items)
        _at_least(0, num_saved_samples=self.num_saved_samples)


@dataclass
class GenerationSection:
    """Sampling (Transformers' GenerationConfig)."""

    max_new_tokens: int = setting(64, "longest completion, tokens")
    temperature: float = setting(1.0, "sampling temperature; log-probabilities use the same")
    top_p: float = setting(1.0, "nucleus: keep the smallest set with this probability")
    top_k: int = setting(0, "keep the k likeliest tokens; 0 keeps all")
    batch_size: int | Literal["auto"] = setting(
        64, "completions generated at once; auto: what fits into memory, of training micro-batches as well"
    )

    @property
    def largest_batch(self) -> int:
        """Completions generated at once where memory allows."""
        return AUTO_BATCH if self.batch_size == "auto" else self.batch_size

    def validate(self) -> None:
        _at_least(1, max_new_tokens=self.max_new_tokens, batch_size=self.largest_batch)
        _at_least(0, top_k=self.top_k)
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, found {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, found {self.top_p}")


@dataclass
class VllmSection:
    """Sampling by vLLM, which TRL drives (TRL's vllm_* arguments, without that prefix; docs/vllm.md)."""

    use_vllm: bool = setting(False, "let vLLM sample in 03 distill, 04, 05, 06, 07 and 10, where installed")
    mode: Literal["colocate", "server"] = setting(
        "colocate", "in this process and on its GPU, or on a server started with vllm serve"
    )
    server_base_url: str = setting("http://localhost:8000", "server: where it listens")
    server_timeout: float = setting(240.0, "server: seconds to wait until it is up")
    group_port: int = setting(51216, "server: port that weights are sent through")
    gpu_memory_utilization: float = setting(0.3, "colocate: share of the GPU's memory that vLLM takes")
    tensor_parallel_size: int = setting(1, "colocate: processes that share one copy of the weights")
    max_model_length: int | None = setting(
        None, "colocate: longest prompt with completion, tokens; null: what the limits on both add up to"
    )
    enable_sleep_mode: bool = setting(False, "colocate: give the GPU's memory back between rollouts")
    importance_sampling_correction: bool = setting(
        True, "05, 06: weigh the policy's loss by its probabilities over vLLM's"
    )
    importance_sampling_mode: Literal[
        "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"
    ] = setting("sequence_mask", "the weight's unit, and whether one out of bounds is cut off or set to 0")
    importance_sampling_clip_max: float | None = setting(3.0, "upper bound of the weight; null for none")
    importance_sampling_clip_min: float | None = setting(None, "lower bound of the weight; null for none")

    def validate(self) -> None:
        _at_least(1, tensor_parallel_size=self.tensor_parallel_size, max_model_length=self.max_model_length)
        _within(1, 65535, group_port=self.group_port)
        _at_least(0, server_timeout=self.server_timeout)
        if not 0 < self.gpu_memory_utilization <= 1:
            found = self.gpu_memory_utilization
            raise ValueError(f"gpu_memory_utilization must be above 0 and at most 1, found {found}")
        if not self.server_base_url.startswith(("http://", "https://")):
            raise ValueError(f"server_base_url must begin with http(s)://, found {self.server_base_url}")
        low, high = self.importance_sampling_clip_min, self.importance_sampling_clip_max
        _at_least(0, importance_sampling_clip_min=low, importance_sampling_clip_max=high)
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

    capacity_mb: float = setting(64.0, "memory for them, MB (10^6 bytes); 0 switches the cache off")
    eviction: Literal["lru", "lfu", "fifo"] = setting(
        "lru", "dropped first when full: least recently used, least frequently used, oldest"
    )
    folder: str = setting("", "folder shared between runs; empty: kept in resume points only", path=True)

    def validate(self) -> None:
        _at_least(0, capacity_mb=self.capacity_mb)


@dataclass
class PathsSection:
    """Folders, relative to the repository unless absolute. `--output_dir` overrides `outputs`."""

    outputs: str = setting("outputs", "where runs are written", path=True)
    datasets: str = setting("datasets", "where download.sh puts data", path=True)


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


@dataclass
class DatasetConfig:
    """The dataset tier: configs/datasets/*.yaml."""

    dataset: Literal["sample", "finqa", "gsm8k", "math"] = setting(
        "sample", "which reader; of a set of your own: whose form prompts and answers have"
    )
    name: str = setting("", "what reports call a set of your own; empty: what dataset says")
    reader: str = setting(
        "", "Python file whose read(path, split) yields the rows of a set of your own", path=True
    )
    files: dict[str, str] = setting({}, "raw file by split, below data_root, where it has another name")
    data_root: str = setting("datasets/sample", "folder holding the raw files", path=True)
    val_fraction: float = setting(0.1, "part of train held out where the set has no validation split")
    val_seed: int = setting(0, "which part that is")
    hold_out_levels: list[int] = setting([], "levels kept out of train and val; they stay in test")
    max_train: int | None = setting(None, "use at most this many training items; null for all")
    max_val: int | None = setting(None, "use at most this many validation items; null for all")
    max_test: int | None = setting(None, "use at most this many test items; null for all")
    instruction: str = setting("", "before a FinQA report, after a GSM8K or MATH question; empty for none")
    table_style: Literal["facts", "rows"] = setting(
        "facts", "tables in the prompt: a line per cell or per row"
    )
    max_input_tokens: int | None = setting(
        None,
        "longest input, tokens; FinQA: the least related text is cut; else: the row is left out of train",
    )
    tokenizer: str = setting("", "counts those tokens: a folder or hub name; empty: estimate", path=True)
    response_fields: list[Literal["evidence", "program", "answer"]] = setting(
        ["program", "answer"], "fields of the taught FinQA response, in order"
    )
    calculator_marks: bool = setting(False, "keep GSM8K's <<16-3=13>> in the taught solution")
    required_fields: list[str] = setting([], "further raw keys a row must have, dotted, e.g. qa.gold_inds")
    error_threshold: float = setting(0.05, "share of rows with an error above which 00 and 01 fail")

    def validate(self) -> None:
        _within(0, 0.9, val_fraction=self.val_fraction)
        _within(0, 1, error_threshold=self.error_threshold)
        _at_least(1, max_train=self.max_train, max_val=self.max_val, max_test=self.max_test)
        _at_least(1, max_input_tokens=self.max_input_tokens)
        if len(set(self.hold_out_levels)) < len(self.hold_out_levels):
            raise ValueError(f"hold_out_levels must name no level twice, found {self.hold_out_levels}")
        fields = self.response_fields
        if "program" not in fields or len(set(fields)) < len(fields):
            raise ValueError(f"response_fields must name program, and no field twice, found {fields}")
        self._validate_own()

    def _validate_own(self) -> None:
        if self.reader and not self.name:
            raise ValueError("reader needs a name: results of your set must not pass for those of another")
        if (self.reader or self.name) and self.dataset == "sample":
            raise ValueError("dataset must be finqa, gsm8k or math for a set of your own, found sample")
        if self.name and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", self.name):
            raise ValueError(f'name must be letters, digits, ".", "_" and "-", found "{self.name}"')
        if unknown := sorted(set(self.files) - {"train", "val", "test"}):
            raise ValueError(f'files must name train, val or test, found "{unknown[0]}"')

    @property
    def label(self) -> str:
        """What records and reports call the set: "gsm8k", and "gsm8k:riddles" where it has a name."""
        return f"{self.dataset}:{self.name}" if self.name else self.dataset


# ------------------------------------------------------------------------------------------- loading


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML's safe loader, refusing a key given twice (plain YAML lets the last one win in silence)."""


def _unique_mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode, deep: bool = False) -> dict:
    seen = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if str(key) in seen:
            raise yaml.MarkedYAMLError(
                problem=f'key "{key}" is given twice', problem_mark=key_node.start_mark
            )
        seen.add(str(key))
    return yaml.SafeLoader.construct_mapping(loader, node, deep)


_UniqueKeyLoader.add_constructor(
    yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG,
    lambda loader, node: _unique_mapping(loader, node, deep=True),
)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping. Raises UserError naming file (and line) when missing, damaged or not a mapping."""
    path = Path(path)
    try:
        with open(path, encoding="utf-8-sig") as file:
            data = yaml.load(file, Loader=_UniqueKeyLoader)  # noqa: S506 - subclass of the safe loader
    except FileNotFoundError:
        others = [shown(other) for other in path.parent.glob("*.yaml")]
        raise UserError(f"{shown(path)}: no such file{suggestion(shown(path), others)}") from None
    except IsADirectoryError:
        raise UserError(f"{shown(path)}: is a folder, not a YAML file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{shown(path)}: not UTF-8 text (byte {error.start})") from None
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{shown(path)}{line}: not valid YAML ({error.problem})") from None
    except yaml.YAMLError as error:
        raise UserError(f"{shown(path)}: not valid YAML ({' '.join(str(error).split())})") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise UserError(f"{shown(path)}: must hold a mapping of keys, found {type(data).__name__}")
    return data


def load_tier(cls: type[T], path: str | Path | None, overrides: dict[str, Any] | None = None) -> T:
    """Load one tier: dataclass defaults, then the YAML file, then overrides (dotted key -> value).

    `path` None stands for an empty file. Raises UserError naming file, key and nearest valid key.
    """
    data = read_yaml(path) if path is not None else {}
    where = shown(path) if path is not None else cls.__name__
    # The file is checked alone first, so that an error names the file or the command line, whichever has it.
    loaded = build(cls, data, where)
    if not overrides:
        return loaded
    for key, value in overrides.items():
        section = data
        *parents, name = key.split(".")
        for parent in parents:
            section[parent] = section.get(parent) or {}
            section = section[parent]
        section[name] = absolute_if_local(value) if _is_path(cls, key) else value
    return build(cls, data, f"command line (over {where})")


def _is_path(cls: type, key: str) -> bool:
    leaf = leaf_keys(cls).get(key)
    return leaf is not None and leaf[1].metadata.get("path", False)


def absolute_if_local(value: Any) -> Any:
    """A path typed on the command line is meant from the working directory, where it exists there."""
    if isinstance(value, Text) and value.value and Path(value.value).expanduser().exists():
        return Text(os.path.abspath(Path(value.value).expanduser()))
    return value


# --------------------------------------------------------------------------------------- a stage's whole


@dataclass(frozen=True)
class StageConfig:
    """Everything a stage was told: its tiers (None for a tier it has not), its own options and the seed."""

    model: Any = None
    algo: Any = None
    dataset: Any = None
    reward: Any = None
    options: Any = None
    seed: int = 0
    quick_test: bool = False

    def to_dict(self, run_dir: Path | None = None) -> dict[str, Any]:
        """Return every resolved value, with no absolute path and nothing that names the run.

        Where outputs go does not change what they are, so `model.paths.outputs` is left out.
        """
        tiers = {}
        for name in ("model", "algo", "dataset", "reward", "options"):
            value = getattr(self, name)
            if value is not None:
                tiers[name] = portable(dataclasses.asdict(value), run_dir)
        tiers.get("model", {}).get("paths", {}).pop("outputs", None)
        return tiers | {"quick_test": self.quick_test}


def portable(value: Any, run_dir: Path | None = None) -> Any:
    """Return plain JSON data in which absolute paths are written relative to the run or the repository."""
    if isinstance(value, dict):
        return {str(key): portable(item, run_dir) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [portable(item, run_dir) for item in value]
    if isinstance(value, Path) or isinstance(value, str) and os.path.isabs(value) and "\n" not in value:
        return relative_name(resolve_path(value), run_dir)
    return value


def relative_name(path: Path, run_dir: Path | None = None) -> str:
    """Return the name a manifest gives a path.

    Relative to the run for a file of the run, to the repository for one in it, else "external/<basename>".
    """
    path = Path(os.path.abspath(path))
    for root in (run_dir, REPO_ROOT):
        if root is not None and path.is_relative_to(os.path.abspath(root)):
            return path.relative_to(os.path.abspath(root)).as_posix()
    return f"external/{path.name}"
