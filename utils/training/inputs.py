"""What the training stages read, as paths. Light to import: the driver asks every stage for its inputs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.frame.config import StageConfig
from utils.frame.files import UserError, resolve_path, shown
from utils.frame.pipeline import (
    DEFAULT_CURRICULUM,
    DEFAULT_REWARD,
    METHODS,
    ROWS,
    Method,
    best_checkpoint,
    row_of,
)
from utils.frame.typed_settings import setting
from utils.models.adapter_files import base_of_adapter
from utils.models.settings import ModelConfig
from utils.rewards.spec import load_reward_spec, paid_weights

if TYPE_CHECKING:
    from utils.frame.stage import StageContext

# Options by which a stage is given an input that is not the run's own.
NAMED = {
    "policy_ckpt": "the policy to start from: a stage folder (its best checkpoint), a checkpoint, a hub "
    "name, or base; empty: the run's SFT policy",
    "reward_spec": "a reward_spec.yaml in place of the run's own, or the stage folder that holds it",
    "candidates": "04's candidates.jsonl, or its folder, in place of the run's own",
    "pairs": "08's pairs.jsonl, or its folder, in place of the run's own; val_pairs.jsonl lies beside it",
}


def input_option(option: str) -> Any:
    """The field of a stage's options that names an input."""
    return setting("", NAMED[option], names_input=True)


def named_file(config: StageConfig, option: str, name: str, own: Path) -> Path:
    """The file that an option names, or ``name`` in the folder that it names; ``own`` where it names none."""
    given = getattr(config.options, option, "")
    if not given:
        return own
    path = resolve_path(given)
    if path.is_dir() and not (path / name).is_file():
        raise UserError(f"--{option} {shown(path)}: this folder holds no {name}")
    return path / name if path.is_dir() else path


def method_inputs(method: Method, config: StageConfig, run_dir: Path) -> dict[str, Path]:
    """What a method's stage reads: what it learns from, what it validates on, its start and its teacher."""
    if method.from_pairs:
        own = run_dir / "_".join(filter(None, (ROWS["preferences"].folder, variant(config)))) / "pairs.jsonl"
        pairs = named_file(config, "pairs", "pairs.jsonl", own)
        inputs = {"pairs": pairs, "val_pairs": pairs.with_name("val_pairs.jsonl")}
    else:
        inputs = {"train": prepared_split(run_dir, "train")}
        if method.from_candidates:
            inputs["candidates"] = candidates_file(config, run_dir)
    spec = reward_spec(run_dir, config)
    inputs |= {"val": prepared_split(run_dir, "val"), "reward_spec": spec}
    inputs |= model_inputs(start_of(config, run_dir, method.starts[0]))
    if method.teacher:
        inputs |= configured_teacher(config.model)
    elif method.rewarded and not method.from_pairs:
        inputs |= teacher_inputs(spec, config.model, config.options.reward)
    return inputs


def prepared_split(run_dir: Path, split: str) -> Path:
    """The records of a split, as 01 prepared them."""
    return run_dir / ROWS["prepare"].folder / f"{split}.jsonl"


def reward_spec(run_dir: Path, config: StageConfig) -> Path:
    """The reward specification of a run, or the one that ``--reward_spec`` names."""
    name = "reward_spec.yaml"
    return named_file(config, "reward_spec", name, run_dir / ROWS["rewards"].folder / name)


def candidates_file(config: StageConfig, run_dir: Path) -> Path:
    """The candidates of a run, or those that ``--candidates`` names."""
    name = "candidates.jsonl"
    return named_file(config, "candidates", name, run_dir / ROWS["candidates"].folder / name)


def start_of(config: StageConfig, run_dir: Path, default: str = "sft") -> Path | str:
    """The policy that a stage starts from: a folder, or a hub name as text.

    ``policy_ckpt`` wins; "base" is the configured model. Else it is what ``start`` says, by default
    ``default``: the run's best SFT checkpoint, or the base model.
    """
    given = getattr(config.options, "policy_ckpt", "")
    start = getattr(config.options, "start", default)
    if given == "base" or (not given and start == "base"):
        return configured(config.model.model.name_or_path)
    return checkpoint_at(given) if given else run_dir / best_checkpoint(METHODS["sft"])


def start_path(ctx: StageContext) -> Path | str:
    """Where a running stage finds the policy that it starts from: its verified input, or a hub name."""
    if is_named(ctx.config):
        return start_of(ctx.config, ctx.run_dir)
    return ctx.inputs.get("checkpoint") or start_of(ctx.config, ctx.run_dir)


def is_named(config: StageConfig) -> bool:
    """Whether a stage starts from something else than its run's SFT policy (--policy_ckpt, --start)."""
    options = config.options
    return bool(getattr(options, "policy_ckpt", "")) or getattr(options, "start", "sft") == "base"


def configured(name_or_path: str) -> Path | str:
    """A configured model's folder where it is local, else its hub name."""
    folder = resolve_path(name_or_path)
    return folder if folder.is_dir() else name_or_path


def checkpoint_at(given: str, several: bool = False) -> Path | str:
    """Where the weights of a policy are that a user named: a folder, or a hub name as text.

    A stage folder means its best checkpoint, and so does its folder of all checkpoints unless ``several`` are
    wanted. Raises UserError for a folder of a run, and for one without a checkpoint.
    """
    folder = resolve_path(given)
    if not folder.is_dir():
        return folder if given.startswith((".", "/", "~", "assets/", "outputs/", "models/")) else given
    if is_checkpoint(folder):
        return folder
    if isinstance(row := row_of(folder.name), Method):
        return folder / f"ckpt_{row.name}" / "best"
    held = sorted(path.name for path in folder.iterdir() if is_checkpoint(path))
    if held and (several or "best" not in held):
        if several:
            return folder
        raise UserError(f"{shown(folder)} holds {', '.join(held)}: name one of them")
    if held:
        return folder / "best"
    stages = [path.name for path in sorted(folder.iterdir()) if isinstance(row_of(path.name), Method)]
    if stages:
        raise UserError(
            f"{shown(folder)} is a run: name the stage whose best checkpoint is meant, such as "
            f"{shown(folder / stages[-1])}"
        )
    raise UserError(
        f"{shown(folder)} holds no checkpoint (neither config.json nor adapter_config.json): name a stage "
        "folder, a checkpoint in it, a hub name, or base"
    )


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is a checkpoint: a full model or an adapter."""
    return any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))


def model_inputs(checkpoint: Path | str) -> dict[str, Path]:
    """The local folders that the policy's weights come from: the checkpoint, and an adapter's base model."""
    if isinstance(checkpoint, str):
        return {}
    inputs = {"checkpoint": checkpoint}
    base = base_of_adapter(checkpoint)
    if base and resolve_path(base).is_dir():
        inputs["base_model"] = resolve_path(base)
    return inputs


def configured_model(name_or_path: str) -> dict[str, Path]:
    """The model's folder as an input, where it is local; a hub name is no file and stands in the config."""
    return model_inputs(configured(name_or_path))


def sft_policy(run_dir: Path) -> dict[str, Path]:
    """The best SFT checkpoint of a run, and the base model below it where that is local."""
    return model_inputs(run_dir / best_checkpoint(METHODS["sft"]))


def teacher_inputs(path: Path, model: ModelConfig, reward: str) -> dict[str, Path]:
    """The teacher's folders as inputs, where ``reward`` asks for its scores and it is local.

    Raises UserError for a ``reward`` to which the specification at ``path`` gives no weight.
    """
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
