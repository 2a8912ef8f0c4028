"""What the training stages read, as paths. Light to import: the driver asks every stage for its inputs."""

from pathlib import Path

from utils.frame.config import StageConfig
from utils.frame.files import read_json, resolve_path
from utils.frame.pipeline import DEFAULT_CURRICULUM
from utils.models.settings import ModelConfig
from utils.rewards.spec import DEFAULT_REWARD, load_reward_spec, paid_weights


def training_inputs(run_dir: Path) -> dict[str, Path]:
    """The prepared splits and the reward specification of a run."""
    return {
        "train": run_dir / "01_preprocessing" / "train.jsonl",
        "val": run_dir / "01_preprocessing" / "val.jsonl",
        "reward_spec": run_dir / "02_rewards" / "reward_spec.yaml",
    }


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
    return model_inputs(run_dir / "03_sft" / "ckpt_sft" / "best")


def teacher_inputs(run_dir: Path, model: ModelConfig, reward: str) -> dict[str, Path]:
    """The teacher's folders as inputs, where ``reward`` asks for its scores and it is local.

    Raises UserError for a ``reward`` that the run's specification cannot pay.
    """
    path = run_dir / "02_rewards" / "reward_spec.yaml"
    # A specification that is not there is reported as the missing input that it is.
    if not path.is_file() or not paid_weights(load_reward_spec(path), reward).intrinsic:
        return {}
    return configured_teacher(model)


def configured_teacher(model: ModelConfig) -> dict[str, Path]:
    """The teacher's folders as inputs, where it is local."""
    folders = configured_model(model.model.teacher_name_or_path)
    names = {"checkpoint": "teacher", "base_model": "teacher_base"}
    return {names[name]: folder for name, folder in folders.items()}


def rollout_inputs(config: StageConfig, run_dir: Path) -> dict[str, Path]:
    """What a stage reads that learns from rollouts of the SFT policy."""
    teacher = teacher_inputs(run_dir, config.model, config.options.reward)
    return training_inputs(run_dir) | sft_policy(run_dir) | teacher


def variant(config: StageConfig) -> str:
    """The suffix of a stage's folder: ``--reward``, then ``--curriculum``, each unless the default."""
    reward = getattr(config.options, "reward", DEFAULT_REWARD)
    curriculum = getattr(config.options, "curriculum", DEFAULT_CURRICULUM)
    named = ((reward, DEFAULT_REWARD), (curriculum, DEFAULT_CURRICULUM))
    return "_".join(value for value, default in named if value != default)
