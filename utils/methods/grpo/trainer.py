"""GRPO: TRL's GRPOTrainer with shared prefixes, on verified and intrinsic outcome rewards.

Departures from stock TRL: prompts are encoded once per group for sampling, scoring and the gradient
(``SharedPrefix``); prompts are tokenised as everywhere else in this project, without special
tokens beyond the rendered ones; and under process supervision every token has an advantage of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from trl import GRPOConfig, GRPOTrainer

from utils.data.records import Record
from utils.frame.stage import StageContext
from utils.methods.grpo.settings import GrpoAlgo
from utils.rewards.reward_pipeline import RolloutRewards, at_last_token
from utils.rewards.spec import RewardSpec
from utils.rollouts.advantages import process_advantages
from utils.rollouts.follows_curriculum import FollowsCurriculum
from utils.rollouts.group_filter import FiltersGroups
from utils.rollouts.panels import GRADIENT, LENGTH, PHANTOM, REWARDS, VALIDATION
from utils.rollouts.reward_state import KeepsRewardState
from utils.rollouts.shared_prefix_trainer import SharedPrefix
from utils.rollouts.start import OutcomeRewards, RenderedPrompts, Start, rollout_arguments

PANELS = {
    **REWARDS,
    **VALIDATION,
    "KL to the reference (nats per token)": ["kl"],
    "entropy (nats per token)": ["entropy"],
    "share of tokens clipped": ["clip_ratio/region_mean"],
    "share of groups without signal": ["frac_reward_zero_std"],
    **PHANTOM,
    **LENGTH,
    **GRADIENT,
}


class SharedPrefixGRPOTrainer(
    RenderedPrompts, FollowsCurriculum, FiltersGroups, KeepsRewardState, SharedPrefix, GRPOTrainer
):
    """TRL's GRPOTrainer, every prompt encoded once per group, on a reward pipeline (``pipeline``).

    ``process_rewards``, where it is set, holds the rewards of the rollout's tokens: each token's advantage is
    then that of its completion's other rewards, and what its later tokens earn from the teacher.
    ``divides_by_mean``: advantages are divided by the group's mean reward, and 0 where that is not above 0
    (MaxRL, arXiv 2602.02710).
    """

    process_rewards: OutcomeRewards | None = None
    divides_by_mean: bool = False

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The stock rollout; advantages [B], or [B, C] under process supervision."""
        rollout = super()._generate_and_score_completions(inputs)
        self._leave_out(rollout)
        mask = rollout["completion_mask"]
        if self.divides_by_mean:
            means = (
                self._weighted_rewards()
                .view(-1, self.num_generations)
                .mean(1)
                .repeat_interleave(self.num_generations)
            )
            own = means[self.accelerator.process_index * len(inputs) :][: len(inputs)]
            rollout["advantages"] = torch.where(own > 0, rollout["advantages"] / own, 0.0)
        if self.process_rewards is not None:
            paid = self.process_rewards.paid
            tokens = intrinsic_tokens(paid, self.process_rewards.mask)
            advantages = process_advantages(tokens, mask, self.num_generations) * paid.weights["intrinsic"]
            rollout["advantages"] = (advantages + rollout["advantages"][:, None].double()).float()
            total = self.accelerator.gather(paid.total)
            self._log_total(total[self._counted_of_all(len(total))])
        advantages = rollout["advantages"]
        mass = (advantages.abs() * mask).sum(1) if advantages.ndim == 2 else advantages.abs()
        self._log_phantom(mass, self.outcomes.paid.correct)
        weights = mask if advantages.ndim == 2 else torch.ones_like(advantages)
        sums = torch.stack([(advantages.abs() * weights).sum(), weights.sum().float()])
        total, count = self.accelerator.reduce(sums, reduction="sum").tolist()
        self._metrics["train"]["advantages/abs_mean"].append(total / max(count, 1))
        return rollout

    def _log_total(self, total: Tensor) -> None:
        """Log the total as ``reward``; TRL knows the outcome's part alone."""
        self._metrics["train"]["reward"][-1] = total.mean().item()
        self._metrics["train"]["reward_std"][-1] = total.std().item()


def intrinsic_tokens(paid: RolloutRewards, mask: Tensor) -> Tensor:
    """The teacher's part of the token rewards, weighted, float64 [B, C].

    What else a completion earns is on its last unmasked token, and is taken off there.
    """
    others = sum(paid.components[name].double() for name in paid.components if name != "intrinsic")
    return paid.token_rewards.double() - at_last_token(others, mask)


def build_grpo_trainer(
    ctx: StageContext, records: Sequence[Record], spec: RewardSpec
) -> tuple[SharedPrefixGRPOTrainer, PreTrainedTokenizerBase]:
    """The trainer for ``ctx``'s configuration, starting from the SFT policy, which is also the reference.

    Raises UserError as `Start.of` and `follow_curriculum`.
    """
    algo: GrpoAlgo = ctx.config.algo
    by_token = algo.supervision == "process"
    start = Start.of(ctx, records, spec, tokens=by_token)
    arguments = GRPOConfig(
        **rollout_arguments(ctx, GRPOConfig, correction=True)
        | {"scale_rewards": "none" if algo.scale_rewards == "mean" else algo.scale_rewards},
        # Under process supervision the teacher's part is not in the outcome that groups compare.
        reward_weights=[float(name != "intrinsic") for name in start.rewards.names] if by_token else None,
    )
    trainer = start.trainer(ctx, SharedPrefixGRPOTrainer, arguments, records)
    trainer.divides_by_mean = algo.scale_rewards == "mean"
    if by_token:
        trainer.process_rewards = start.rewards
    return trainer, start.tokenizer
