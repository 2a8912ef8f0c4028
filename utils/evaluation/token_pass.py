"""The token pass of an evaluation: policy, teacher and reference on the same response prefixes.

One forward pass of each over every item's greedy answer and gold text gives the distances of metrics.json
("teacher", "reference"), the values of samples/tokens.jsonl and the intrinsic reward of the answers.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from utils.data.prompts import completion_ids
from utils.evaluation.answers import PolicyAnswers
from utils.evaluation.critic import Critic, load_critic
from utils.evaluation.distances import NAMES, WITHOUT, against, kl_per_text
from utils.evaluation.token_text import TokenTexts
from utils.evaluation.token_values import Models, Values, values_of_texts
from utils.frame.files import UserError, derive_seed, shown
from utils.frame.processes import is_main_process
from utils.frame.stage import StageContext
from utils.models.loading import load_policy, load_tokenizer
from utils.models.settings import ModelConfig
from utils.models.teacher import Teacher, check_same_tokenizer
from utils.rewards.intrinsic import token_rewards
from utils.rewards.spec import RewardSpec
from utils.statistics.clusters import cluster_numbers

DECIMALS = 4  # of the values in tokens.jsonl


@dataclass(frozen=True)
class TokenPass:
    """What the pass gives.

    metrics   what metrics.json gets: "teacher" and "reference", where there is one
    rows      of samples/tokens.jsonl, one per answered item, in the order of the records
    outcomes  of each record alpha * log pi_hat(answer | prompt), the teacher's reward of the whole answer;
              None without a teacher, without an answer, and where the pass had to leave the item out
    """

    metrics: dict[str, Any]
    rows: list[dict[str, Any]]
    outcomes: list[float | None]


def load_teacher(config: ModelConfig, checkpoint: Path | str) -> Teacher | None:
    """The teacher that the policy is held against, None where the model tier names none.

    Raises UserError that says how to do without where it cannot be loaded or compared.
    """
    if not config.model.teacher_name_or_path:
        return None
    try:
        return Teacher.load(config.model, load_tokenizer(checkpoint, config.model))
    except UserError as error:
        raise UserError(f"{error}; {WITHOUT}") from None


def load_reference(config: ModelConfig, path: Path, checkpoint: Path | str) -> nn.Module:
    """The policy in ``path``, for the policy in ``checkpoint`` to be held against.

    Raises UserError that says how to do without where it cannot be loaded or compared.
    """
    try:
        model, tokenizer = load_policy(path, config.model)
        check_same_tokenizer(load_tokenizer(checkpoint), tokenizer, shown(path))
    except UserError as error:
        raise UserError(f"{error}; --reference_metrics false evaluates without it") from None
    return model


def token_pass(
    ctx: StageContext,
    answers: PolicyAnswers,
    teacher: Teacher | None,
    reference: nn.Module | None,
    spec: RewardSpec,
    checkpoint: Path | str | None = None,
) -> TokenPass:
    """Run the pass over answers and gold text; nothing is run without teacher and reference.

    Every process calls this alike; what they find together is for the first one to sum up, the others get
    nothing.

    Args:
        teacher, reference: what the policy is held against.
        spec: its form of the intrinsic reward is what tokens get.
        checkpoint: where the policy lies. Beside PPO's lies its critic; and a reference that lies there is
            the policy itself, which is not run twice.

    Raises UserError where a model's values are not finite.
    """
    if teacher is None and reference is None:
        return TokenPass({}, [], [None] * len(answers.records))
    start = time.perf_counter()
    itself = reference is not None and checkpoint is not None and checkpoint == ctx.inputs.get("reference")
    others = {"teacher": teacher and teacher.model, "reference": answers.model if itself else reference}
    others = {name: model for name, model in others.items() if model is not None}
    critic = load_critic(ctx, checkpoint, answers.model, spec, others)
    models = Models(
        answers.model,
        others,
        len(answers.tokenizer),
        spec.intrinsic.alpha,
        critic.temperature if critic else 1.0,
        critic.model if critic else None,
    )
    texts = {
        "on_responses": [completion and completion.token_ids for completion in answers.completions],
        "on_gold": completion_ids(answers.tokenizer, [record.target_text for record in answers.records]),
    }
    progress = partial(ctx.progress, description="comparing token by token")
    values = values_of_texts(models, answers.prompts, texts, progress)
    items = len(answers.records)
    if not is_main_process():
        return TokenPass({}, [], [None] * items)
    reports = [record.report for record in answers.records]
    metrics = {name: _distances(values, name, reports, ctx.seed) for name in models.others}
    own = values["on_responses"]
    columns = {item: _columns(each, spec, critic, itself) for item, each in own.items()}
    if critic:
        for item, advantage in critic.advantages(answers, own, spec).items():
            columns[item]["advantage"] = advantage
    taught = {item: float((each["q"] - each["v"]).sum()) for item, each in own.items() if "q" in each}
    outcomes = [taught.get(item) for item in range(items)]
    ctx.runtime["token_pass_seconds"] = round(time.perf_counter() - start, 3)
    return TokenPass(metrics, _rows(answers, columns), outcomes)


def _distances(
    values: Mapping[str, Mapping[int, Values]], other: str, reports: Sequence[str], seed: int
) -> dict[str, Any]:
    """What metrics.json says of one other model: a part per text; ``reports`` are those of all items."""
    clusters = {
        name: cluster_numbers([reports[item] for item in compared]) for name, compared in values.items()
    }
    rng = np.random.default_rng(derive_seed(seed, f"{other} metrics"))
    found = {
        name: against(compared.values(), other, rng, clusters[name])
        | {"left_out": len(reports) - len(compared)}
        for name, compared in values.items()
    }
    if other == "reference":
        for name, compared in values.items():
            found[name] |= kl_per_text(compared.values(), other, rng, clusters[name])
    return found


def _columns(values: Values, spec: RewardSpec, critic: Critic | None, itself: bool) -> Values:
    """What tokens.jsonl says of one answer, by name, unrounded [n] each.

    A policy that is its own reference gets no columns of zeros.
    """
    found = {"log_prob": values["log_prob/policy"]}
    if "q" in values:
        q, v = (torch.from_numpy(values[name])[None] for name in ("q", "v"))
        gamma = critic.algo.gamma if critic else 1.0
        rewards = token_rewards(q, v, torch.ones_like(q), form=spec.intrinsic.form, gamma=gamma)
        found |= {"intrinsic": rewards[0].numpy(), "kl_teacher": _kl(values, "teacher")}
    if "log_prob/reference" in values and not itself:
        found["kl_reference"] = _kl(values, "reference")
        found["log_ratio"] = values["log_prob/policy"] - values["log_prob/reference"]
    return found


def _kl(values: Values, other: str) -> np.ndarray:
    return values[f"distances/{other}"][:, NAMES.index("reverse_kl")]


def _rows(answers: PolicyAnswers, columns: Mapping[int, Values]) -> list[dict[str, Any]]:
    texts = TokenTexts(answers.tokenizer)
    pairs = zip(answers.records, answers.completions, strict=True)
    return [
        {
            "id": record.id,
            "tokens": texts.of(completion.token_ids),
            # Adding 0 makes a positive zero of a negative one.
            "values": {k: (v.round(DECIMALS) + 0.0).tolist() for k, v in columns.get(item, {}).items()},
        }
        for item, (record, completion) in enumerate(pairs)
        if completion is not None
    ]
