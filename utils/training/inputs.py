"""What the training stages read, as paths. Light to import: the driver asks every stage for its inputs."""

from __future__ import annotations

from pathlib import Path

from utils.frame.config import StageConfig
from utils.frame.files import read_json, resolve_path
from utils.frame.pipeline import DEFAULT_CURRICULUM, DEFAULT_REWARD, METHODS, ROWS, Method, best_checkpoint
from utils.models.settings import ModelConfig
from utils.rewards.spec import load_reward_spec, paid_weights


def method_inputs(method: Method, config: StageConfig, run_dir: Path) -> dict[str, Path]:
    """What a method's stage reads: what it learns from, what it validates on, its start and its teacher."""
    if method.from_pairs:
        pairs = run_dir / "_".join(filter(None, (ROWS["preferences"].folder, variant(config))))
        inputs = {"pairs": pairs / "pairs.jsonl", "val_pairs": pairs / "val_pairs.jsonl"}
    else:
        inputs = {"train": prepared_split(run_dir, "train")}
        if method.from_candidates:
            inputs["candidates"] = run_dir / ROWS["candidates"].folder / "candidates.jsonl"
    inputs |= {"val": prepared_split(run_dir, "val"), "reward_spec": reward_spec(run_dir)}
    if getattr(config.options, "start", method.starts[0]) == "base":
        inputs |= configured_model(config.model.model.name_or_path)
    else:
        inputs |= sft_policy(run_dir)
    if method.teacher:
        inputs |= configured_teacher(config.model)
    elif method.rewarded and not method.from_pairs:
        inputs |= teacher_inputs(run_dir, config.model, config.options.reward)
    return inputs


def prepared_split(run_dir: Path, split: str) -> Path:
    """The records of a split, as 01 prepared them."""
    return run_dir / ROWS["prepare"].folder / f"{split}.jsonl"


def reward_spec(run_dir: Path) -> Path:
    """The reward specification of a run."""
    return run_dir / ROWS["rewards"].folder / "reward_spec.yaml"


def model_inputs(checkpoint: Path | str) -> dict[str, Path]:
    """The local folders that the policy's weights come from: the checkpoint, and an adapter's base model."""
    if isinstance(checkpoint, str):
        return {}
    inputs = {"checkpoint": checkpoint}
    adapter = checkpoint / "adapter_config.json"
    if adapter.is_file():
        base = read_json(adapter).get("base_model_name_or_path")
        if base and resolve_path(base).is_dir():
            inputs["base_model"] = resolve_path(base)
    return inputs


def configured_model(name_or_path: str) -> dict[str, Path]:
    """The model's folder as an input, where it is local; a hub name is no file and stands in the config."""
    folder = resolve_path(name_or_path)
    return model_inputs(folder) if folder.is_dir() else {}


def sft_policy(run_dir: Path) -> dict[str, Path]:
    """The best SFT checkpoint of a run, and the base model below it where that is local."""
    return model_inputs(run_dir / best_checkpoint(METHODS["sft"]))


def teacher_inputs(run_dir: Path, model: ModelConfig, reward: str) -> dict[str, Path]:
    """The teacher's folders as inputs, where ``reward`` asks for its scores and it is local.

    Raises UserError for a ``reward`` that the run's specification cannot pay.
    """
    path = reward_spec(run_dir)
    # A specification that is not there is reported as the missing input that it is.
    if not path.is_file() or not paid_weights(load_reward_spec(path), reward).intrinsic:
        return {}
    return configured_teacher(model)


def configured_teacher(model: ModelConfig) -> dict[str, Path]:
    """The teacher's folders as inputs, where it is local."""
    folders = configured_model(model.model.teacher_name_or_path)
    names = {"checkpoint": "teacher", "base_model": "teacher_base"}
    return {names[name]: folder for name, folder in folders.items()}


def variant(config: StageConfig) -> str:
    """The suffix of a stage's folder: ``--reward``, then ``--curriculum``, each unless the default."""
    reward = getattr(config.options, "reward", DEFAULT_REWARD)
    curriculum = getattr(config.options, "curriculum", DEFAULT_CURRICULUM)
    named = ((reward, DEFAULT_REWARD), (curriculum, DEFAULT_CURRICULUM))
    return "_".join(value for value, default in named if value != default)
