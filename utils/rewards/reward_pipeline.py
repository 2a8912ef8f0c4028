"""Rewards of a rollout: graded completions and teacher scores, weighted and added up, token by token.

    intrinsic    weight * (normalised teacher rewards, less `missing_eos_penalty` on a truncated completion's
                 last token); the penalty itself is neither normalised nor clipped
    task parts   exact_match, numeric_match, program_partial, format_penalty (utils/rewards/task_reward.py)
    reasoning    weight * score in [0, 1] (`Task.reasoning_score`)
    own          weight * value of each user-defined component (utils/rewards/user_components.py)
    overlong     where the method has it: what a long completion loses (utils/rewards/overlong.py)

The reward of a whole completion falls on its last unmasked token. A completion without tokens has nowhere
to put it: its parts count in `components`, its row of `token_rewards` is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from utils.data.records import Record
from utils.frame.files import UserError
from utils.frame.processes import num_processes
from utils.frame.stage import no_bar
from utils.grading.tasks import task_of
from utils.models.prefix.shared_prefix import CompletionBatch
from utils.models.teacher import Teacher
from utils.rewards.combiner import RewardCombiner
from utils.rewards.intrinsic import missing_eos, outcome_reward, token_rewards
from utils.rewards.overlong import Overlong
from utils.rewards.spec import RewardSpec, own_weights, paid_weights
from utils.rewards.task_reward import COMPONENTS, reward_of
from utils.rewards.user_components import own_rewards

ALL_COMPONENTS = (*COMPONENTS, "reasoning", "intrinsic")  # besides user-defined ones


@dataclass(frozen=True)
class RolloutRewards:
    """Rewards of B completions of up to C tokens, on the batch's device.

    token_rewards: float32 [B, C], 0 where masked; no KL penalty in it.
    components: float32 [B] each of `ALL_COMPONENTS`, user-defined ones and what overlong completions lose,
        weighted; their sum is the total, which equals `token_rewards.sum(1)` except for completions without
        tokens.
    raw: float32 [B], unweighted: "reasoning", user-defined ones, and where a teacher was asked "intrinsic",
        its alpha * log pi_hat(completion | prompt) in units of alpha nats.
    correct: bool [B], verified against the gold. parsed: bool [B], of a valid form.
    weights: of each component in force, for the log.
    """

    token_rewards: Tensor
    components: dict[str, Tensor]
    raw: dict[str, Tensor]
    correct: Tensor
    parsed: Tensor
    weights: dict[str, float]

    @property
    def total(self) -> Tensor:
        """Float32 [B], the sum of all components."""
        return sum(part.double() for part in self.components.values()).float()


class RewardPipeline:
    """Grades completions, asks the teacher, and combines, for the training method of one run.

    records: the training records; a completion's record is given by its place among them.
    reward: one of `utils.frame.pipeline.REWARDS`. teacher: may be None where `needs_teacher` is false, and is
    never asked then. gamma: the trainer's discount, which the bellman forms take over. replicated: every
    process scores the same rollouts, so that none has to hear of the others' statistics. Otherwise each of
    several processes scores its part of a rollout, in their order, and all call at once: statistics and
    evidence are those of the whole, so that their states stay the same. overlong: what long completions lose.
    Raises UserError where a teacher is missing.
    """

    overlong: Overlong | None = None

    def __init__(
        self,
        records: Sequence[Record],
        spec: RewardSpec,
        reward: str,
        teacher: Teacher | None,
        *,
        gamma: float = 1.0,
        replicated: bool = False,
    ):
        weights = paid_weights(spec, reward)
        if weights.intrinsic > 0 and teacher is None:
            raise UserError(f"--reward {reward} needs a teacher: set model.teacher_name_or_path")
        self.records, self.gamma, self.section = records, gamma, spec.intrinsic
        self.teacher = teacher if weights.intrinsic > 0 else None
        self.combiner = RewardCombiner(spec, weights)
        self.combiner.in_parts = num_processes() > 1 and not replicated
        paid, own = replace(spec, weights=weights), own_rewards(spec)
        self.own = own_weights(spec, reward)

        @lru_cache(maxsize=1 << 14)
        def graded(record: int, text: str) -> tuple[dict[str, float], dict[str, float], bool, bool]:
            item = records[record]
            task = task_of(item.dataset)
            result = task.grade(item, text, tuple(spec.required_fields), program_accuracy=False)
            measured = {"reasoning": task.reasoning_score(item, text)}
            measured |= {each.name: each.score(item, text) for each in own}
            return reward_of(item, result, paid), measured, result.correct, result.format_valid

        self._graded = graded

    @property
    def names(self) -> list[str]:
        """The components in force: those of the task always, others where they have a weight."""
        optional = {"reasoning": self.combiner.base["reasoning"], **self.own}
        optional["intrinsic"] = self.combiner.base["intrinsic"]
        paid = [*COMPONENTS, *(name for name, weight in optional.items() if weight > 0)]
        return [*paid, "overlong"] if self.overlong else paid

    @staticmethod
    def needs_teacher(spec: RewardSpec, reward: str) -> bool:
        """Whether a teacher has to be loaded for this specification and `--reward`."""
        return paid_weights(spec, reward).intrinsic > 0

    def correct(self, record: Sequence[int], texts: Sequence[str]) -> list[bool]:
        """Whether completions are right, by the gold alone; arguments as those of `score_tokens`."""
        return [self._graded(index, text)[2] for index, text in zip(record, texts, strict=True)]

    def score_tokens(
        self,
        record: Sequence[int],
        batch: CompletionBatch,
        texts: Sequence[str],
        truncated: Tensor,
        update: bool = True,
    ) -> RolloutRewards:
        """Rewards with the teacher's on every token, for PPO.

        record: place of each completion's record, [B]; texts: decoded without special tokens, [B];
        truncated: bool [B], cut before the end-of-sequence token; update: let running statistics and adaptive
        weights learn from this rollout.
        Raises UserError for an unusable gold or a reward that is not finite.
        """
        intrinsic, raw = None, {}
        if self.teacher is not None:
            mask = batch.completion_mask
            scores = self.teacher.score(batch)
            raw["intrinsic"] = outcome_reward(scores.q, scores.v, mask)
            rewards = token_rewards(scores.q, scores.v, mask, form=self.section.form, gamma=self.gamma)
            intrinsic = self.combiner.normalise(rewards, mask, "token", update)
        return self._combined(record, batch, texts, truncated, intrinsic, raw, update)

    def score_outcomes(
        self,
        record: Sequence[int],
        batch: CompletionBatch,
        texts: Sequence[str],
        truncated: Tensor,
        update: bool = True,
        progress: Callable[..., Iterable] = no_bar,
    ) -> RolloutRewards:
        """The same with one teacher reward per completion, its (normalised) alpha * log pi_hat, on the last
        token: for GRPO, RLOO and candidates. The form does not matter: all have this sum per completion, up
        to a constant per prompt (at gamma 1). Completions without tokens stay out of the statistics.
        ``progress``: as `StageContext.progress`.
        """
        intrinsic, raw = None, {}
        if self.teacher is not None:
            mask = batch.completion_mask
            scores = self.teacher.score(batch, progress)
            raw["intrinsic"] = outcome_reward(scores.q, scores.v, mask)
            filled = mask.bool().any(1, keepdim=True)
            outcomes = self.combiner.normalise(raw["intrinsic"][:, None], filled, "outcome", update)
            intrinsic = at_last_token(outcomes[:, 0], mask)
        return self._combined(record, batch, texts, truncated, intrinsic, raw, update, progress)

    def _combined(
        self,
        record: Sequence[int],
        batch: CompletionBatch,
        texts: Sequence[str],
        truncated: Tensor,
        intrinsic: Tensor | None,
        raw: dict[str, Tensor],
        update: bool,
        progress: Callable[..., Iterable] = no_bar,
    ) -> RolloutRewards:
        mask = batch.completion_mask
        answers = list(zip(record, texts, strict=True))
        rows = [self._graded(index, text) for index, text in progress(answers, description="grading")]

        def column(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=mask.device)

        weights = self.combiner.weights()
        components = {name: column([parts[name] for parts, *_ in rows]) for name in COMPONENTS}
        raw["reasoning"] = column([measured["reasoning"] for _, measured, *_ in rows])
        components["reasoning"] = weights["reasoning"] * raw["reasoning"]
        for name, weight in self.own.items():
            raw[name] = column([measured[name] for _, measured, *_ in rows])
            components[name] = weight * raw[name] + 0.0  # no negative zeros
        if self.overlong:
            components["overlong"] = self.overlong.penalty(mask.sum(1))
        whole = sum(part.double() for part in components.values())
        rewards = at_last_token(whole, mask)
        seen = {"reasoning": raw["reasoning"].tolist()}
        components["intrinsic"] = torch.zeros_like(components["reasoning"])
        if intrinsic is not None:
            cut = truncated.to(mask.device)
            intrinsic = intrinsic + missing_eos(mask, cut, self.section.missing_eos_penalty)
            seen["intrinsic"] = intrinsic.double().sum(1).tolist()
            # Rounded before it is added up, so that the total is the sum of what the tokens really get.
            paid = (weights["intrinsic"] * intrinsic).float()
            rewards = rewards + paid
            components["intrinsic"] = paid.double().sum(1).float()
        verdicts = [[row[place] for row in rows] for place in (2, 3)]
        correct, parsed = torch.tensor(verdicts, dtype=torch.bool, device=mask.device)
        if update:
            self.combiner.observe(seen, correct.tolist(), list(record))
        return RolloutRewards(rewards.float(), components, raw, correct, parsed, weights)

    def state_dict(self) -> dict[str, Any]:
        """What rollouts change, as JSON data for a checkpoint. Of the teacher's cache only the statistics,
        for the log: it saves itself."""
        cache = getattr(self.teacher, "cache", None)
        return self.combiner.state_dict() | {"teacher_cache": None if cache is None else cache.stats}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave, under the same specification; UserError for another's."""
        self.combiner.load_state_dict(state)


def at_last_token(values: Tensor, mask: Tensor) -> Tensor:
    """Spread [B] to [B, C]: each value on its row's last unmasked column, nowhere where there is none."""
    kept = mask.bool()
    from_here = kept.flip(1).cumsum(1).flip(1)  # unmasked columns from this one on
    return values[:, None] * (kept & (from_here == 1))
