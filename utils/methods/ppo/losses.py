"""The arithmetic of PPO on tokens, as pure functions of tensors (Schulman et al. 2017, arXiv 1707.06347).

Conventions: [B, C] tensors hold one row per completion, padded on the right, 0 where `mask` (bool [B, C]) is
off. Functions without a mask act on each element and take any shape. A `total` argument sums a tensor over
processes, so that a rollout spread over several is treated as one; by default there is only one.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from utils.rollouts.advantages import CONSTANT

Total = Callable[[Tensor], Tensor]


def alone(values: Tensor) -> Tensor:
    """The sum over processes where there is one."""
    return values


# --------------------------------------------------------------------------------- advantages and returns


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float | Tensor) -> Tensor:
    """Generalised advantage estimates (Schulman et al. 2016, arXiv 1506.02438), [B, C].

    `values` are V(s_t) of the state before each token, `lam` is one for all or [B], so that with V = 0 after
    the last token

        delta_t = r_t + gamma V_{t+1} - V_t,    A_t = delta_t + gamma lam A_{t+1},    return_t = A_t + V_t.

    A completion that was cut off at the length limit is treated as one that ended: there is no bootstrap
    from the state after it, because the limit is part of the task here (the answer has to fit).
    """
    rewards, values = rewards * mask, values * mask
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    deltas = rewards + gamma * following - values
    advantages = torch.zeros_like(deltas)
    running = torch.zeros_like(deltas[:, 0]) if deltas.shape[1] else None
    for step in reversed(range(deltas.shape[1])):
        running = (deltas[:, step] + gamma * lam * running) * mask[:, step]
        advantages[:, step] = running
    return advantages


def lambda_by_length(mask: Tensor, alpha: float) -> Tensor:
    """Length-adaptive lambda, 1 - 1/(alpha * tokens), at least 0, [B] (VAPO, arXiv 2504.05118, 4.2)."""
    return (1 - 1 / (alpha * mask.sum(1).clamp(min=1))).clamp(min=0.0)


# ---------------------------------------------------------------------------------------------- statistics


def moments(values: Tensor, mask: Tensor, total: Total = alone) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and unbiased variance of the unmasked entries, float64 scalars; 0 where there are none."""
    entries = values[mask.bool()].double()
    count, sum_ = total(torch.stack([torch.ones_like(entries).sum(), entries.sum()]))
    mean = sum_ / count.clamp(min=1)
    variance = total((entries - mean).square().sum()) / (count - 1).clamp(min=1)
    return count, mean, variance


def whiten(values: Tensor, mask: Tensor, *, shift_mean: bool = True, total: Total = alone) -> Tensor:
    """Divide by the standard deviation of the unmasked entries, after taking their mean away if asked.

    Where all entries are equal there is no spread to divide by: the result is 0 with `shift_mean`, and
    `values` as they are without. (Without it, TRL's removed PPO moved the mean back unscaled, which can turn
    signs around; here it is a change of scale and nothing else.)
    """
    _, mean, variance = moments(values, mask, total)
    spread = variance.sqrt()
    constant = spread <= CONSTANT * (mean.square() + variance).sqrt()
    scale = torch.where(constant, 0.0 if shift_mean else 1.0, 1 / spread)
    shifted = values.double() - mean if shift_mean else values.double()
    return (shifted * scale * mask).to(values.dtype)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor, total: Total = alone) -> float:
    """1 - Var(returns - values) / Var(returns): 1 for a perfect critic, 0 for a constant, below 0 for worse.

    NaN where the returns do not vary, since there is nothing to explain.
    """
    _, mean, variance = moments(returns, mask, total)
    _, _, residual = moments(returns - values, mask, total)
    if variance.sqrt() <= CONSTANT * (mean.square() + variance).sqrt():
        return float("nan")
    return float(1 - residual / variance)


# -------------------------------------------------------------------------------------------------- losses


def policy_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    cliprange: float,
    *,
    cliprange_high: float | None = None,
    dual_clip: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The clipped surrogate, -min(rho A, clip(rho, 1 - c, 1 + c) A) with rho = pi / pi_old.

    `cliprange_high` is another c above 1 (clip-higher, DAPO, arXiv 2503.14476, 3.1). With `dual_clip` the
    loss where A < 0 is at most -dual_clip A (Ye et al. 2020, arXiv 1912.09729, eq. 5). Elementwise: the loss,
    and bool where it clips, which leaves the element without a gradient.
    """
    ratio = (log_probs - old_log_probs).exp()
    free = -advantages * ratio
    high = cliprange if cliprange_high is None else cliprange_high
    loss = torch.maximum(free, -advantages * ratio.clamp(1 - cliprange, 1 + high))
    clipped = loss > free
    if dual_clip is not None:
        most = torch.where(advantages < 0, -dual_clip * advantages, torch.inf)
        loss, clipped = torch.minimum(loss, most), clipped | (loss > most)
    return loss, clipped


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, cliprange: float
) -> tuple[Tensor, Tensor]:
    """Half the squared error, at least that of the values held within `cliprange` of the old ones.

    Elementwise: ½ max((V - R)², (clip(V, V_old - c, V_old + c) - R)²), and where the clipped term is the
    larger.
    """
    near = old_values + (values - old_values).clamp(-cliprange, cliprange)
    free, clipped = (values - returns).square(), (near - returns).square()
    return 0.5 * torch.maximum(free, clipped), clipped > free


# -------------------------------------------------------------------------------- Kullback-Leibler divergence


def k1(log_ratio: Tensor) -> Tensor:
    """Estimate KL(p||q) from samples of p by log p - log q: unbiased, of either sign (nats)."""
    return log_ratio


def k3(log_ratio: Tensor) -> Tensor:
    """Estimate KL(p||q) from samples of p by q/p - 1 - log(q/p), given log p - log q: unbiased, at least 0.

    See http://joschu.net/blog/kl-approx.html.
    """
    return torch.expm1(-log_ratio) + log_ratio


@dataclass
class KLController:
    """The weight of the KL penalty: fixed, or led by a target (Ziegler et al. 2019, arXiv 1909.08593).

    After every rollout: coef <- coef (1 + clip(KL / target - 1, ±0.2) n / horizon), where KL is the mean per
    completion (nats, summed over its tokens) and n counts the rollout's completions, as does `horizon`.
    """

    coef: float
    target: float | None = None  # None: the coefficient stays
    horizon: float = 10_000.0

    def update(self, kl: float, completions: int) -> None:
        """Take in the KL per completion of a finished rollout."""
        if self.target is not None:
            error = min(max(kl / self.target - 1, -0.2), 0.2)
            self.coef *= 1 + error * completions / self.horizon
