"""On-policy distillation by policy gradient: the reverse KL from the sampled tokens alone (``sampled_kl``).

Of a sampled token y_t, with pi the student, pi_T the teacher, pi_0 the start policy, and all but rho without
a gradient,

    R_t  = log pi_T(y_t) - log pi(y_t) + (reward_scale - 1) (log pi_T(y_t) - log pi_0(y_t))
    A_t  = max(R_t, log(l / (1 - l)))    with l = reward_mixture
    A_t  = R_t + KL(pi || pi_T)          with kl_baseline
    loss = -sum_t M_t rho_t A_t / sum_t M_t,    rho_t = pi(y_t) / pi_old(y_t), pi_old what was sampled from

The expectation of R_t is -KL(pi || pi_T) where reward_scale is 1, so its gradient is that of the exact
divergence, and the baseline changes its variance alone. M_t says which tokens are learnt from: all, or in the
first ``exploration_fraction`` of the training those whose reward is not below its bound, and after it the
``top_entropy_quantile`` of the rollout's tokens in which the student's entropy is highest.

Sources: Lu et al. 2025 (thinkingmachines.ai/blog/on-policy-distillation); reward_scale, ExOPD, Yang et al.
2026 (arXiv 2602.12125); kl_baseline, vOPD, Oh et al. 2026 (arXiv 2605.07865); the bound and M_t, REOPOLD, Ko
et al. 2026 (arXiv 2603.11137).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from utils.frame.processes import gather_items
from utils.models.prefix.prefix_scoring import token_scores
from utils.models.prefix.shared_prefix import CompletionBatch, evaluating, output_head


class LearnsFromSamples:
    """Part of the distillation trainer: the loss of ``divergence: sampled_kl``."""

    _start: Mapping[str, Tensor] | None = None  # trainable weights of the start policy

    @property
    def learns_from_samples(self) -> bool:
        """Whether the reverse KL is that of the sampled tokens."""
        return self.args.divergence == "sampled_kl"

    @property
    def _bound(self) -> float | None:
        mixture = self.args.reward_mixture
        return None if mixture is None else math.log(mixture / (1 - mixture))

    def _keep_start(self) -> None:
        """Remember the start policy, where rewards are of it; call it before anything is trained."""
        if self.learns_from_samples and self.args.reward_scale != 1:
            trained = (pair for pair in self._student.named_parameters() if pair[1].requires_grad)
            self._start = {name: parameter.detach().clone() for name, parameter in trained}

    @contextlib.contextmanager
    def _as_at_the_start(self) -> Iterator[None]:
        """The student has the start policy's weights."""
        parameters = dict(self._student.named_parameters())
        now = {name: parameters[name].data for name in self._start}
        for name, weights in self._start.items():
            parameters[name].data = weights
        try:
            yield
        finally:
            for name, weights in now.items():
                parameters[name].data = weights

    # -------------------------------------------------------------------------------------------- rollout

    def _score_samples(self, batch: CompletionBatch, teacher_log_probs: Tensor) -> dict[str, Tensor]:
        """What updates need of the policy that sampled and of the start policy, and what is learnt from."""
        scores = {"teacher_log_probs": teacher_log_probs}
        if self._start is not None:
            with self._as_at_the_start():
                scores["start_log_probs"] = self._own_scores(batch)[0]
        scores["old_log_probs"], entropies = self._own_scores(batch)
        rewards = self._sample_rewards(scores["old_log_probs"], scores)
        return scores | {"learnt": self._learnt(rewards, entropies, batch.completion_mask.bool()).float()}

    def _own_scores(self, batch: CompletionBatch) -> list[Tensor]:
        """The student's log-probabilities of the tokens and its entropies before them, [B, C] each."""
        found, student = [], self._student
        with evaluating(student):
            for part in batch.split(self.args.per_device_train_batch_size):
                scores = token_scores(
                    output_head(student),
                    self._student_states(student, part),
                    part.tokens(),
                    entropy=True,
                    vocab_size=self.vocab_size,
                )
                found.append([part.scatter(values) for values in (scores.log_prob, scores.entropy)])
        return [torch.cat(pieces) for pieces in zip(*found, strict=True)]

    def _learnt(self, rewards: Tensor, entropies: Tensor, mask: Tensor) -> Tensor:
        """Bool [B, C], M of this process's rows."""
        explores = self.state.global_step < self.args.exploration_fraction * self.args.max_steps
        if explores and self._bound is not None:
            return (rewards >= self._bound) & mask
        if self.args.top_entropy_quantile < 1:
            every = np.array(gather_items(entropies[mask].tolist()))
            return (entropies >= np.quantile(every, 1 - self.args.top_entropy_quantile)) & mask
        return mask

    # -------------------------------------------------------------------------------------------- updates

    def _share_out(self, update: Sequence[dict[str, Tensor]], tokens: Tensor) -> None:
        """Let an optimizer step's tokens that are learnt from weigh as much as all of its ``tokens``."""
        learnt = self._total(sum(part["learnt"].sum() for part in update)).clamp(min=1)
        for part in update:
            part["learnt"] = part["learnt"] * tokens / learnt

    def _sample_rewards(self, log_probs: Tensor, scores: Mapping[str, Tensor]) -> Tensor:
        """R of tokens that the student now gives these log-probabilities."""
        teacher, scale = scores["teacher_log_probs"], self.args.reward_scale
        rewards = teacher - log_probs
        return rewards if scale == 1 else rewards + (scale - 1) * (teacher - scores["start_log_probs"])

    def _policy_gradient(
        self, states: Tensor, head: nn.Module, batch: CompletionBatch, inputs: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The loss of each completion token, and log pi - log pi_T for the log, both [N]."""
        mask = batch.completion_mask.bool()
        names = ("teacher_log_probs", "start_log_probs", "old_log_probs", "learnt")
        scores = {name: inputs[name][mask] for name in names if name in inputs}
        log_probs = token_scores(head, states, batch.tokens(), vocab_size=self.vocab_size).log_prob
        advantages = self._sample_rewards(log_probs.detach(), scores)
        if self._bound is not None:
            advantages = advantages.clamp(min=self._bound)
        if self.args.kl_baseline:
            with torch.no_grad():
                advantages = advantages + self._divergence(states.detach(), head, inputs)
        ratio = (log_probs - scores["old_log_probs"]).exp()
        return -scores["learnt"] * ratio * advantages, log_probs.detach() - scores["teacher_log_probs"]
