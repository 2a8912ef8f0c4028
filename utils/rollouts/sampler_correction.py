"""The importance correction of a policy's loss for completions that vLLM drew, as TRL's GRPOTrainer has it.

vLLM computes with other kernels and roundings than the policy that is trained, so its probabilities mu are
not quite pi, and a mean over its samples not quite one over the policy's. Weighing with pi / mu makes up for
that (truncated importance sampling; masked where a ratio says that the two have parted).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from utils.frame.processes import gather_items


def importance_weights(
    log_ratio: Tensor, mask: Tensor, mode: str, low: float | None = None, high: float | None = None
) -> Tensor:
    """pi / mu within bounds: of tokens, [B, C]; of completions where ``mode`` begins with sequence, [B, 1].

    A weight out of the bounds is moved to the nearer one (truncate) or set to 0 (mask). ``mode`` is TRL's
    ``vllm_importance_sampling_mode``.

    Args:
        log_ratio: log pi - log mu of completion tokens, [B, C]; NaN, where mu is not known, counts as 0.
        mask: which are tokens, [B, C].
    """
    logs = torch.where(mask.bool() & ~log_ratio.isnan(), log_ratio, 0.0)
    if mode.startswith("sequence"):
        logs = logs.sum(1, keepdim=True)
    weights = logs.exp()
    low, high = 0.0 if low is None else low, math.inf if high is None else high
    if mode.endswith("truncate"):
        return weights.clamp(low, high)
    return weights.masked_fill((weights < low) | (weights > high), 0.0)


class CorrectsSampler:
    """Mixin for trainers derived from GRPOTrainer that make their rollouts and losses themselves."""

    def _correction(
        self, log_probs: Tensor, sampler: list[list[float | None]] | None, mask: Tensor
    ) -> dict[str, Tensor]:
        """The weights as a part of a rollout; {} where the policy itself sampled, or correction is off.

        Args:
            log_probs: of the policy, [B, C].
            sampler: vLLM's log-probabilities of the tokens that it drew; None where the policy sampled.
            mask: bool [B, C].
        """
        if sampler is None or not self.vllm_importance_sampling_correction:
            return {}
        drawn = torch.zeros_like(log_probs)
        known = [math.nan if value is None else value for row in sampler for value in row]
        drawn[mask] = torch.tensor(known, dtype=drawn.dtype, device=drawn.device)
        log_ratio = log_probs - drawn
        low, high = self.vllm_importance_sampling_clip_min, self.vllm_importance_sampling_clip_max
        weights = importance_weights(log_ratio, mask, self.vllm_importance_sampling_mode, low, high)
        self._log_correction(log_ratio, weights, mask)
        return {"importance_weights": weights}

    def _log_correction(self, log_ratio: Tensor, weights: Tensor, mask: Tensor) -> None:
        """Log, under TRL's names, how far the two are apart."""
        differences = log_ratio[mask & ~log_ratio.isnan()].abs()
        used = weights.flatten() if weights.shape[1] == 1 else weights[mask]
        differences, used = (gather_items(values.tolist()) or [0.0] for values in (differences, used))
        metrics = self._metrics["train"]
        for name, number in (
            ("sampling_logp_difference/mean", math.fsum(differences) / len(differences)),
            ("sampling_logp_difference/max", max(differences)),
            ("importance_sampling_ratio/min", min(used)),
            ("importance_sampling_ratio/mean", math.fsum(used) / len(used)),
            ("importance_sampling_ratio/max", max(used)),
        ):
            metrics[f"sampling/{name}"].append(number)


def corrected(losses: Tensor, inputs: dict[str, Tensor], mask: Tensor) -> Tensor:
    """A policy's losses of the unmasked tokens of a micro-batch, [N], with the weights of its rollout."""
    if "importance_weights" not in inputs:
        return losses
    return losses * inputs["importance_weights"].expand(mask.shape)[mask]
