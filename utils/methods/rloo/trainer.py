"""RLOO: TRL's RLOOTrainer with shared prefixes, REINFORCE with the mean of the other samples as baseline.

Of a completion, R is its reward less beta times log pi - log pi_ref, summed over its tokens; its
advantage A is R - b, b its baseline; its loss is -min(rho A, clip(rho) A), rho the ratio of the whole
completion's probabilities. Departures from stock TRL: prompts are encoded once per group (``SharedPrefix``);
other baselines can be chosen; and numbers that are not finite stop the run, where TRL sets their advantages
to 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from trl import RLOOConfig, RLOOTrainer
from trl.trainer.utils import nanstd

from utils.data.records import Record
from utils.frame.files import UserError
from utils.frame.processes import gather_items, is_main_process
from utils.frame.stage import StageContext
from utils.methods.rloo.settings import RlooAlgo
from utils.rewards.spec import RewardSpec
from utils.rollouts.advantages import baselines
from utils.rollouts.follows_curriculum import FollowsCurriculum
from utils.rollouts.group_filter import FiltersGroups
from utils.rollouts.panels import ADAPTED, CUT_OFF, GRADIENT, LENGTH, PHANTOM, REWARDS, VALIDATION
from utils.rollouts.reward_state import KeepsRewardState
from utils.rollouts.rollout_log import RolloutLog, by_group
from utils.rollouts.shared_prefix_trainer import SharedPrefix
from utils.rollouts.start import RenderedPrompts, Start, rollout_arguments

PANELS = {
    **REWARDS,
    **ADAPTED,
    **VALIDATION,
    "baseline": ["baselines/mean"],
    "size of the advantage": ["advantages/abs_mean"],
    "KL to the reference (nats per token)": ["kl"],
    "KL to the reference (nats per completion)": ["kl_sequence"],
    "entropy (nats per token)": ["entropy"],
    "share of completions clipped": ["clip_ratio/region_mean"],
    "share of groups without signal": ["frac_reward_zero_std"],
    **PHANTOM,
    **LENGTH,
    **CUT_OFF,
    **GRADIENT,
}


@dataclass
class BaselineRLOOConfig(RLOOConfig):
    """RLOOConfig with a choice of baselines."""

    baseline_type: str = RlooAlgo.baseline_type


class SharedPrefixRLOOTrainer(
    RenderedPrompts, FollowsCurriculum, FiltersGroups, KeepsRewardState, SharedPrefix, RLOOTrainer
):
    """TRL's RLOOTrainer, every prompt encoded once per group, on a reward pipeline (``pipeline``).

    ``rollout_log``, where it is set, gets every rollout's rewards, KL, baselines and advantages.
    """

    args: BaselineRLOOConfig
    rollout_log: RolloutLog | None = None

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._log_probs: list[Tensor] = []  # of the rollout under way: the policy's, then the reference's

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any):
        """The stock scores; those of a rollout are kept until it is complete."""
        scores = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if not torch.is_grad_enabled():
            self._log_probs.append(scores[0])
        return scores

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The stock rollout, with the advantages of the chosen baseline.

        The stock step returns neither rewards nor KL, so they are taken down on its way. With the
        leave-one-out baseline the advantages are those of the stock step, bit by bit.
        """
        self._log_probs = []
        rollout = super()._generate_and_score_completions(inputs)
        rewards = self._weighted_rewards()
        returns, kl = rewards, torch.zeros_like(rewards)
        if self.reward_clip_range:
            returns = returns.clamp(*self.reward_clip_range)
        if self.beta:
            policy, reference = self._log_probs
            kl = self.accelerator.gather(((policy - reference) * rollout["completion_mask"]).sum(-1))
            returns = returns - self.beta * kl
        if not returns.isfinite().all():
            raise UserError(
                f"rewards or KL that are not finite at step {self.state.global_step}: lower "
                "algo.learning_rate, or use model.torch_dtype float32; the last resume point is kept"
            )
        baseline = baselines(returns, self.num_generations, self.args.baseline_type)
        advantages = returns - baseline
        if self.args.normalize_advantages:
            counted = advantages[self._counted_of_all(len(advantages))]
            advantages = (advantages - counted.mean()) / (nanstd(counted) + 1e-4)  # as TRL does it
        first = self.accelerator.process_index * len(inputs)
        rollout["advantages"] = advantages[first : first + len(inputs)]
        self._leave_out(rollout)
        self._log_phantom(rollout["advantages"].abs(), self.outcomes.paid.correct)
        advantages = self.accelerator.gather(rollout["advantages"])  # 0 where rows only fill the rollout
        self._log_rollout(inputs, rewards, kl, baseline, advantages)
        return rollout

    def _log_rollout(
        self, inputs: list[dict[str, Any]], rewards: Tensor, kl: Tensor, baseline: Tensor, advantages: Tensor
    ) -> None:
        """Log the rollout of all processes: means for the metrics, every number for the rollout log."""
        metrics = self._metrics["train"]
        metrics["advantages/abs_mean"].append(advantages.abs().mean().item())
        metrics["baselines/mean"].append(baseline.mean().item())
        metrics["kl_sequence"].append(kl.mean().item())
        if self.rollout_log is None:
            return
        size = self.num_generations
        records = gather_items([row["record"] for row in inputs])[::size]
        if is_main_process():
            row = {
                "ids": [self.pipeline.records[index].id for index in records],
                "rewards": by_group(rewards, size),
                "kl": by_group(kl, size),
                "baselines": by_group(baseline, size),
                "advantages": by_group(advantages, size),
            }
            self.rollout_log.write(self.state.global_step, row)


def build_rloo_trainer(
    ctx: StageContext, records: Sequence[Record], spec: RewardSpec
) -> tuple[SharedPrefixRLOOTrainer, PreTrainedTokenizerBase]:
    """The trainer for ``ctx``'s configuration, starting from the SFT policy, which is also the reference.

    It writes ``logs/rollouts.jsonl``. Raises UserError as `Start.of` and `follow_curriculum`.
    """
    start = Start.of(ctx, records, spec)
    arguments = BaselineRLOOConfig(**rollout_arguments(ctx, BaselineRLOOConfig))
    trainer = start.trainer(ctx, SharedPrefixRLOOTrainer, arguments, records)
    trainer.rollout_log = RolloutLog(ctx.out / "resume" / "rollouts", ctx.out / "logs" / "rollouts.jsonl")
    trainer.add_callback(trainer.rollout_log)
    return trainer, start.tokenizer
