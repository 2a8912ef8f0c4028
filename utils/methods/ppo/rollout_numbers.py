"""What PPO says of its rollouts and updates: the numbers of its log, and those that stop it."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from utils.methods.ppo.losses import KLController, k1, k3, moments
from utils.methods.ppo.ppo_config import PPOConfig
from utils.models.prefix.shared_prefix import CompletionBatch
from utils.rewards.reward_pipeline import RewardPipeline, RolloutRewards
from utils.training.finite import check_finite

REMEDY = (
    "lower algo.learning_rate or algo.num_ppo_epochs, or use model.torch_dtype float32; "
    "the last resume point is kept"
)


class LogsRollouts:
    """Trainer mixin: a log row holds the means of what was recorded since the last one."""

    args: PPOConfig
    pipeline: RewardPipeline
    kl: KLController

    def _count_tokens(self, batch: CompletionBatch) -> None:
        """Count this rollout's completion tokens, and, as TRL does, all tokens so far, prompts included."""
        prompt, completion = self._total(
            torch.stack([batch.prompt_mask.sum(), batch.completion_mask.sum()])
        ).tolist()
        self._rollout_tokens = completion
        self.state.num_input_tokens_seen += prompt + completion
        self._metrics["train"]["num_tokens"] = [self.state.num_input_tokens_seen]

    def _log_rollout(
        self,
        rewards: RolloutRewards,
        mask: Tensor,
        truncated: Tensor,
        values: Tensor,
        returns: Tensor,
        entropies: Tensor,
        log_ratio: Tensor,
    ) -> None:
        """Log the rollout's statistics, and let the KL coefficient follow."""
        every, mask = self._counted(torch.ones_like(truncated)), self._counted(mask)

        def mean(numbers: Tensor, chosen: Tensor) -> float:
            return float(moments(numbers, chosen, self._total)[1])

        lengths = mask.sum(1)
        found = {
            "reward": mean(rewards.total, every),
            **{f"rewards/{name}/mean": mean(paid, every) for name, paid in rewards.components.items()},
            **{f"weights/{name}": rewards.weights[name] for name in self.pipeline.combiner.adapted},
            "train_accuracy": mean(rewards.correct, every),
            "completions/mean_length": mean(lengths, every),
            "completions/clipped_ratio": mean(truncated, every),
            "values/mean": mean(values, mask),
            "returns/mean": mean(returns, mask),
            "entropy": mean(entropies, mask),
        }
        if self.args.kl_coef:
            found |= {
                "kl": mean(k3(log_ratio), mask),
                "kl_sequence": mean(k1(log_ratio).sum(1), every),
                "kl_coef": self.kl.coef,
            }
            completions = int(self._total(every.sum()))
            self.kl.update(found["kl_sequence"], completions)
        self._record(found)

    def _log_updates(self) -> None:
        seconds = time.perf_counter() - self._rollout_began
        for update in self._updates:
            self._record(update)
        skipped = self._micro_batches // self.args.gradient_accumulation_steps - len(self._updates)
        self._record({"updates_skipped": skipped, "tokens_per_second": self._rollout_tokens / seconds})

    def _record(self, found: dict[str, float]) -> None:
        """Log numbers; a log row holds their means since the last one."""
        for name, number in found.items():
            self._metrics["train"][name].append(number)

    def _check_finite(self, what: str, numbers: Tensor, record: Sequence[int]) -> None:
        """Raise UserError naming step and records where a row of [B, C] holds NaN or infinity."""
        check_finite(what, numbers, record, self.pipeline.records, self.state.global_step, REMEDY)
