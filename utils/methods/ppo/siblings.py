"""Values of states without a critic: what the other completions of the same prompt went on to earn.

A rollout holds G completions of each prompt. Those that begin with the same tokens have been in the same
states: before token t of completion i, its siblings S_i(t) are the other completions of its group whose first
t tokens are the same. Their mean return from there is a Monte-Carlo estimate of the state's value, at no cost
beyond the rollout. Where they are few it is shrunk to the mean of the group, i left out, and that to the mean
of the other prompts:

    V_i(t) = (sum of R_j(t) over S_i(t) + k M_i(t)) / (|S_i(t)| + k),        V_i(0) = M_i(0)
    M_i(t) = (sum of R_j(t) over the n others of the group + m B_i(t)) / (n + m)

with R the returns at lambda = 1. The n others are those that come as far as token t, as are the completions
of other prompts, whose mean B_i(t) is. Where nobody comes as far, M_i(t) is M_i(0), which counts all others.
k counts in siblings and m in completions of the group. m = (1 - r) / r has the least squared error where r is
the share of the variance of returns that lies between prompts (James and Stein's estimator).

Leaving completion i out keeps the gradient at lambda = 1 unbiased: V_i(t) depends on i through its tokens
before t alone, and on the others, which are drawn independently of it, so that the expectation
of grad log pi(a_t | s_t) V_i(t) over a_t is 0. As an estimate of the value it is biased where k or m weigh
in; with lambda < 1 that bias reaches the advantages, as a learned critic's does.

Near it: VinePPO (Kazemnejad et al. 2024, arXiv 2410.01679) samples further completions from every step to
value it; "GRPO is secretly a process reward model" (Sullivan 2025, arXiv 2509.21154) finds the prefix tree in
GRPO's groups; tree-based GRPO (Ji et al. 2025, arXiv 2509.21240) samples the tree on purpose.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from utils.methods.ppo.losses import Total, alone, explained_variance, gae

QUARTERS = 4


def returns_to_go(rewards: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """The discounted sum of a completion's rewards from each token on, [B, C]: returns at lambda = 1."""
    return gae(rewards, torch.zeros_like(rewards), mask, gamma=gamma, lam=1.0)


def shared_prefixes(completion_ids: Tensor, mask: Tensor, size: int) -> Tensor:
    """Bool [groups, G, G, C]: whether two completions of a group are the same up to, not including, a token
    that both have. A completion is no sibling of itself."""
    ids, mask = (tensor.view(-1, size, tensor.shape[1]) for tensor in (completion_ids, mask.bool()))
    both = mask[:, :, None] & mask[:, None]
    same = (ids[:, :, None] == ids[:, None]) & both
    before = torch.ones_like(same)
    before[..., 1:] = same[..., :-1].long().cumprod(-1).bool()
    itself = torch.eye(size, dtype=torch.bool, device=mask.device)
    return before & both & ~itself[:, :, None]


def group_means(returns: Tensor, mask: Tensor, size: int) -> Tensor:
    """The mean return of the other completions of the group from their start, at every token, [B, C].

    ``returns`` are `returns_to_go`; a completion without tokens earns 0.
    """
    first = returns[:, :1].sum(1).view(-1, size, 1)
    return _shrunk(first, torch.ones_like(first), 0.0).reshape(-1, 1) * mask


def sibling_values(
    returns: Tensor,
    completion_ids: Tensor,
    mask: Tensor,
    size: int,
    shrinkage: float,
    group_shrinkage: float,
) -> Tensor:
    """The value of the state before each token, V_i(t) above, [B, C]; masked tokens get 0.

    ``returns`` are `returns_to_go`, [B, C]; ``size`` is G: the completions of a group stand next to each
    other. ``shrinkage`` is k, ``group_shrinkage`` m.
    """
    grouped, kept = returns.view(-1, size, returns.shape[1]), mask.view(-1, size, mask.shape[1]).to(returns)
    siblings = shared_prefixes(completion_ids, mask, size).to(returns)
    start = _shrunk(grouped[..., :1], torch.ones_like(grouped[..., :1]), group_shrinkage)
    means = _shrunk(grouped, kept, group_shrinkage)
    means = torch.where(means.isnan(), start, means)
    total = torch.einsum("gijt,gjt->git", siblings, grouped)
    values = (total + shrinkage * means) / (siblings.sum(2) + shrinkage)
    values[:, :, :1] = start
    return values.reshape(returns.shape) * mask


def _shrunk(grouped: Tensor, kept: Tensor, shrinkage: float) -> Tensor:
    """M above of returns [groups, G, C], of which ``kept`` (0 or 1) count; NaN where none does."""
    total, count = (grouped * kept).sum(1, keepdim=True), kept.sum(1, keepdim=True)
    elsewhere = count.sum(0) - count  # completions of other prompts
    mean = (total.sum(0) - total) / elsewhere.clamp(min=1)
    weight = shrinkage * (elsewhere > 0).to(grouped)
    return (total - grouped * kept + weight * mean) / (count - kept + weight)


def explained(
    known: dict[str, Tensor], returns: Tensor, mask: Tensor, total: Total = alone
) -> dict[str, float]:
    """How much of the variance of returns at lambda = 1 values explain, which these returns do not hold.

    ``known`` are values by name, [B, C]; those of the name "" also by the quarter of the completion that a
    token is in. What does not vary is left out.
    """
    name = "explained_variance/lambda_1"
    found = {
        f"{name}/{label}" if label else name: explained_variance(values, returns, mask, total)
        for label, values in known.items()
    }
    lengths = mask.sum(1, keepdim=True).clamp(min=1)
    quarter = torch.arange(mask.shape[1], device=mask.device) * QUARTERS // lengths
    for part in range(QUARTERS):
        within = mask.bool() & (quarter == part)
        found[f"{name}/quarter_{part + 1}"] = explained_variance(known[""], returns, within, total)
    return {label: share for label, share in found.items() if not math.isnan(share)}
