"""What a completion's reward is worth against its group, as pure functions (RLOO, and GRPO by token).

A rollout's B completions are in groups of G next to each other, the completions of one prompt.
"""

import torch
from torch import Tensor

CONSTANT = 1e-6  # a standard deviation below this share of the root mean square is rounding, not spread


def baselines(rewards: Tensor, size: int, kind: str) -> Tensor:
    """What is taken off each reward, [B]: the mean of the others in its group of ``size`` ("loo"), the mean
    of all in it ("mean"), or nothing ("none").

    Leave-one-out leaves the expected gradient what it is, because the baseline of a completion does not
    depend on it; the group's mean shrinks it by (G - 1) / G.
    """
    groups = rewards.view(-1, size)
    total = groups.sum(1, keepdim=True)
    found = {
        "loo": (total - groups) / (size - 1),
        "mean": (total / size).expand_as(groups),
        "none": torch.zeros_like(groups),
    }
    return found[kind].reshape(-1)


def phantom_share(mass: Tensor, correct: Tensor, size: int) -> float:
    """Share of the advantages in groups that are all right or all wrong, 0 where there are none at all.

    ``mass`` is the sum of a completion's absolute advantages, [B]. Such a group says nothing of what makes an
    answer right; a reward with other parts gives it advantages all the same (verl-recipe, issue 125).
    """
    groups, right = mass.double().view(-1, size), correct.view(-1, size).double().mean(1)
    phantom = groups[(right == 0) | (right == 1)].sum()
    return float(phantom / groups.sum().clamp(min=torch.finfo(torch.float64).tiny))


def process_advantages(rewards: Tensor, mask: Tensor, size: int) -> Tensor:
    """Advantages of tokens from rewards of tokens, float64 [B, C] (DeepSeekMath, arXiv 2402.03300, 4.1.3).

    The rewards, [B, C], of all unmasked tokens of a group together are brought to mean 0 and (unbiased)
    deviation 1; where they have no spread they become 0. A token's advantage is the sum of the normalised
    rewards from it to its completion's end; masked tokens get 0.
    """
    kept = mask.bool().view(-1, size * mask.shape[1])
    values = rewards.double().view_as(kept) * kept
    count = kept.sum(1, keepdim=True)
    mean = values.sum(1, keepdim=True) / count.clamp(min=1)
    centred = (values - mean) * kept
    squares = centred.square().sum(1, keepdim=True)
    spread = (squares / (count - 1).clamp(min=1)).sqrt()
    size_of = (values.square().sum(1, keepdim=True) / count.clamp(min=1)).sqrt()
    scale = torch.where(spread > CONSTANT * size_of, 1 / spread, 0.0)
    scaled = (centred * scale).view(mask.shape)
    return scaled.flip(1).cumsum(1).flip(1) * mask.bool()
