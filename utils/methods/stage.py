"""A method as a stage: what its numbered script declares and runs, from its row of the pipeline.

Light to import: the driver asks every script for its stage.
"""

from __future__ import annotations

from dataclasses import make_dataclass, replace
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any, Literal

from utils.frame.pipeline import (
    DEFAULT_CURRICULUM,
    DEFAULT_REWARD,
    PIPELINE,
    CurriculumName,
    Method,
    RewardName,
    row_of,
)
from utils.frame.stage import StageContext
from utils.frame.stage_plan import Choice, NoOptions, Stage
from utils.frame.typed_settings import setting
from utils.models.settings import ModelConfig
from utils.rollouts.settings import RolloutAlgo
from utils.training.inputs import input_option, method_inputs, variant
from utils.training.limits import method_fits


def method_stage(script: str, note: str = "", choosing: str = "which method to train") -> Stage:
    """The stage of a training script: that of its first row, and by an option those of the others.

    note: what more its summary says. choosing: the option's line in ``--help``.
    """
    first, *others = (row for row in PIPELINE if row.script == script)
    stage = _stage(first)
    if others:
        stages = {row.option[1]: _stage(row) for row in others}
        choice = Choice(others[0].option[0].removeprefix("--"), choosing, first.name, stages)
        stage = replace(stage, choice=choice)
    return replace(stage, summary=f"{stage.summary} {note}".strip())


def run(ctx: StageContext) -> None:
    """Train the method of the context's stage, from its inputs to its curves."""
    from utils.rollouts.batches import updates_per_rollout
    from utils.training.run import train_stage

    method = row_of(ctx.stage)
    module = builder(method)
    build = partial(getattr(module, f"build_{method.package}_trainer"), ctx)
    unit = updates_per_rollout(ctx.config.algo) if method.samples else 1
    train_stage(ctx, method.name, build, module.PANELS, unit)


def builder(method: Method) -> ModuleType:
    """The module that makes a method's trainer."""
    return import_module(f"utils.methods.{method.package}.{method.builder}")


def _stage(method: Method) -> Stage:
    name = "".join(map(str.capitalize, method.package.split("_"))) + "Algo"
    settings = getattr(import_module(f"utils.methods.{method.package}.settings"), name)
    if issubclass(settings, RolloutAlgo) != method.samples:
        raise ValueError(f"{method.name}: {name} is a RolloutAlgo if its row says samples, and only then")
    learns_from = "01_preprocessing/{train,val}.jsonl"
    if method.from_pairs:
        learns_from = "08_preferences/{pairs,val_pairs}.jsonl, 01_preprocessing/val.jsonl"
    if method.from_candidates:
        learns_from = "04_candidates/candidates.jsonl, 01_preprocessing/val.jsonl"
    start = "the base model" if method.starts == ("base",) else "03_sft/ckpt_sft/best"
    asks_teacher = method.teacher or (method.rewarded and not method.from_pairs)
    return Stage(
        number=method.folder[:2],
        folder=method.folder,
        summary=method.summary,
        reads=f"{learns_from}, 02_rewards/reward_spec.yaml, {start}{', teacher' if asks_teacher else ''}",
        writes=f"{method.folder}/: ckpt_{method.name}/{{best,final,step_N}}, logs/{{{method.logs}}}, "
        f"valid_samples/{'; with --curriculum: logs/curriculum.{jsonl,png}' if method.ordered else ''}",
        tiers={"model": (ModelConfig, "configs/models/sample.yaml"), "algo": (settings, method.defaults)},
        options=_options(method),
        inputs=partial(method_inputs, method),
        variant=variant,
        several_processes=True,
        quick=dict(method.quick),
        fits=partial(method_fits, method),
    )


def _options(method: Method) -> type:
    """The class of the stage's own options, which follow from the row."""
    own: list[tuple[str, Any, Any]] = []
    inputs = [("policy_ckpt", method.starts != ("base",)), ("reward_spec", True)]
    inputs += [("candidates", method.from_candidates), ("pairs", method.from_pairs)]
    own += [(name, str, input_option(name)) for name, wanted in inputs if wanted]
    if len(method.starts) > 1:
        note = "what is trained: the SFT policy, or the base model"
        own.append(("start", Literal[method.starts], setting(method.starts[0], note)))
    if method.rewarded:
        folder = f"a folder {method.folder}_<reward>"
        note = f"which parts of the reward specification count; {folder} for others"
        if method.from_pairs:
            note = f"whose pairs of 08: those made by these parts of the reward; {folder}"
        own.append(("reward", RewardName, setting(DEFAULT_REWARD, note)))
    if method.ordered:
        folder = f"a folder {method.folder}_<curriculum>"
        note = f"which prompts to learn from next (docs/curricula.md); {folder} for others"
        own.append(("curriculum", CurriculumName, setting(DEFAULT_CURRICULUM, note)))
    return make_dataclass("Options", own) if own else NoOptions
