"""What the tests of whole training stages share: inputs, contexts, ends of a process, files written."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
from transformers import TrainerCallback

from tests.support.records import RECORDS
from tests.support.tiny_models import make_tiny_tokenizer
from utils.data.prompts import completion_ids
from utils.data.records import Record
from utils.frame.config import StageConfig
from utils.frame.files import REPO_ROOT, write_jsonl
from utils.frame.manifest import RESUME
from utils.frame.pipeline import row_of
from utils.frame.stage import StageContext, _clear
from utils.methods.grpo.settings import GrpoAlgo
from utils.methods.grpo.trainer import build_grpo_trainer
from utils.methods.sft.settings import SftAlgo
from utils.methods.sft.trainer import build_sft_trainer
from utils.methods.stage import builder
from utils.models.loading import add_lora, load_policy, save_policy
from utils.models.settings import (
    GenerationSection,
    LoraSection,
    ModelConfig,
    ModelSection,
    TrainingSection,
    ValidationSection,
)
from utils.rewards.spec import RewardSpec, write_reward_spec
from utils.training.run import train_stage


class Killed(BaseException):
    """The end of a process, as far as one can have it within one."""


class KillAt(TrainerCallback):
    """End at an event ("on_step_begin", "on_step_end", "on_save", "on_train_end") of a step."""

    def __init__(self, event: str, step: int):
        def kill(args, state, control, **kwargs):
            if state.global_step == step:
                raise Killed

        setattr(self, event, kill)


def stage_inputs(folder: Path, model: Path) -> dict[str, Path]:
    """The inputs of a training stage below ``folder``; the checkpoint is a random adapter on ``model``, with
    dropout, so that a lost random state shows."""
    rows = [
        Record(
            id=f"train-{number}",
            dataset="sample",
            question="the change ?",
            input_text=f"cash 2001 {10 + number} 2002 {30 + 2 * number}\nthe change ?" + "?" * (number % 3),
            target_text="{}",
            target_answer=str(20 + number),
            target_program=f"subtract({30 + 2 * number}, {10 + number})",
            level=1,
        ).to_json()
        for number in range(8)
    ]
    write_jsonl(folder / "train.jsonl", rows)
    write_jsonl(folder / "val.jsonl", rows)
    write_reward_spec(folder / "reward_spec.yaml", RewardSpec(required_fields=["program"]))
    policy, tokenizer = load_policy(model, ModelSection(), trainable=True)
    adapter = add_lora(policy, LoraSection(r=4, lora_dropout=0.1), 0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # new adapters do nothing, and have a gradient in one of their halves alone
        for parameter in adapter.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    save_policy(adapter, tokenizer, folder / "checkpoint")
    names = ("train.jsonl", "val.jsonl", "reward_spec.yaml", "checkpoint")
    return {name.split(".")[0]: folder / name for name in names}


def write_pairs(folder: Path, rows: list[dict]) -> dict[str, Path]:
    """The inputs of DPO that are its own: a preference pair of each of ``rows``, all but five held out."""
    tokenizer = make_tiny_tokenizer()
    pairs = []
    for place, row in enumerate(rows):
        texts = {"chosen": "right", "rejected": "no" * (1 + place % 3)}
        ids = {f"{side}_ids": completion_ids(tokenizer, [text])[0] for side, text in texts.items()}
        pairs.append({"id": row["id"], "prompt": row["input_text"], **texts, **ids})
    write_jsonl(folder / "pairs.jsonl", pairs[:5])
    write_jsonl(folder / "val_pairs.jsonl", pairs[5:])
    return {name: folder / f"{name}.jsonl" for name in ("pairs", "val_pairs")}


def stage_context(out: Path, inputs: dict[str, Path], model: Path, algo, *, resuming=False, **options):
    """The context of 06 or 07 on the tiny model, which is the teacher as well."""
    config = ModelConfig(
        model=ModelSection(name_or_path=str(model), teacher_name_or_path=str(model), max_prompt_length=200),
        training=TrainingSection(save_steps=1, logging_steps=3),
        validation=ValidationSection(eval_steps=2, num_items=2),
        generation=GenerationSection(max_new_tokens=8, batch_size=8),
    )
    options = SimpleNamespace(**{"reward": "combined", **options})
    out.mkdir(exist_ok=True)
    if resuming:
        _clear(out, keep_files=True)  # as the frame does
    settings = StageConfig(model=config, algo=algo, options=options, seed=3)
    return StageContext(settings, "run", out.parent, out, resuming, inputs)


def run_script(number: str, ctx: StageContext) -> None:
    """What the numbered script does with a context."""
    path = next(REPO_ROOT.glob(f"{number}_*.py"))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    others = module.STAGE.choice.others.values() if module.STAGE.choice else ()
    # The first stage of these settings: presets have the class of their method, and come after it.
    of_algo = [each for each in (module.STAGE, *others) if type(ctx.config.algo) is each.tiers["algo"][0]]
    ctx.stage = of_algo[0].folder
    # Drawing all panels takes longer than the training.
    with mock.patch.object(builder(row_of(ctx.stage)), "PANELS", {"reward": ["reward", "val_reward"]}):
        module.run(ctx)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a stage's folder that its manifest would list."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "stage.log" and RESUME not in path.relative_to(folder).parts
    }


SPEC = RewardSpec(required_fields=["program"])


def training_files(folder: Path, model: Path) -> dict[str, Path]:
    """The inputs of a training stage by name, written below ``folder``; the checkpoint is a new adapter on
    ``model``."""
    write_jsonl(folder / "train.jsonl", [row.to_json() for row in RECORDS])
    write_jsonl(folder / "val.jsonl", [row.to_json() for row in RECORDS])
    write_reward_spec(folder / "reward_spec.yaml", SPEC)
    policy, tokenizer = load_policy(model, ModelSection(), trainable=True)
    save_policy(add_lora(policy, LoraSection(r=4), 0), tokenizer, folder / "checkpoint")
    names = ("train.jsonl", "val.jsonl", "reward_spec.yaml", "checkpoint")
    return {name.split(".")[0]: folder / name for name in names}


def model_config(folder, **sections) -> ModelConfig:
    """Settings for the tiny models (one token per byte) that let validations, saves and logs fall apart."""
    defaults = {
        "lora": LoraSection(r=4),
        "training": TrainingSection(save_steps=2, logging_steps=3),
        "validation": ValidationSection(eval_steps=3, num_items=3),
        "generation": GenerationSection(max_new_tokens=40, batch_size=8),
    }
    return ModelConfig(
        model=ModelSection(name_or_path=str(folder), max_prompt_length=200), **{**defaults, **sections}
    )


SFT = SftAlgo(max_steps=7, learning_rate=2e-2, warmup_steps=1, per_device_train_batch_size=3)

# A rollout of 8 completions serves two optimizer steps; rewards come from the texts' lengths (see below).
GRPO = GrpoAlgo(
    num_rollouts=4,
    learning_rate=2e-2,
    warmup_steps=0,
    per_device_train_batch_size=8,
    steps_per_generation=1,
    num_generations=4,
    num_iterations=2,
    beta=0.05,
)


def varied_rewards(self):
    """Rewards that differ within the groups of a tiny random model."""

    def exact_match(completions, **_):
        self.paid = SimpleNamespace(correct=torch.zeros(len(completions), dtype=torch.bool))
        return [len(set(text)) / 40 for text in completions]

    return [exact_match]


def train(ctx, *callbacks):
    """The whole of a training stage, below ``ctx.out``."""

    def build(records, spec):
        if isinstance(ctx.config.algo, SftAlgo):
            trainer, tokenizer = build_sft_trainer(ctx, records)
        else:
            trainer, tokenizer = build_grpo_trainer(ctx, records, spec)
        for callback in callbacks:
            trainer.add_callback(callback)
        return trainer, tokenizer

    unit = 2 if isinstance(ctx.config.algo, GrpoAlgo) else 1
    train_stage(ctx, "x", build, {"loss": ["loss"], "validation": ["val_reward"]}, unit)
