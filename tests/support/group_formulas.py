"""The GRPO family's advantages and losses in NumPy, as the papers and TRL's documentation define them."""

import numpy as np

from tests.support.group_stub import SIZE


def outcome_advantages(rewards: np.ndarray, scale: str) -> np.ndarray:
    """Rewards [B] against their groups, as TRL documents it (its 1e-4 included)."""
    groups = rewards.reshape(-1, SIZE)
    centred = groups - groups.mean(1, keepdims=True)
    if scale == "group":
        centred = centred / (groups.std(1, ddof=1, keepdims=True) + 1e-4)
    elif scale == "batch":
        centred = centred / (rewards.std(ddof=1) + 1e-4)
    elif scale == "mean":
        means = groups.mean(1, keepdims=True)
        centred = np.where(means > 0, centred / np.where(means > 0, means, 1), 0)
    return centred.reshape(-1)


def separate_advantages(parts: np.ndarray) -> np.ndarray:
    """Rewards by component, [B, K]: each normalised within its group, their sum over the rollout (GDPO)."""
    groups = parts.reshape(-1, SIZE, parts.shape[1])
    normal = (groups - groups.mean(1, keepdims=True)) / (groups.std(1, ddof=1, keepdims=True) + 1e-4)
    total = normal.reshape(parts.shape).sum(1)
    return (total - total.mean()) / (total.std(ddof=1) + 1e-4)


def slow_loss(new, old, ref, advantages, mask, args, tokens_in_rollout) -> float:
    """The loss of one micro-batch, [B, C] each, as the papers (and TRL's documentation) define it."""
    low, high = 1 - args.epsilon, 1 + (args.epsilon if args.epsilon_high is None else args.epsilon_high)
    if advantages.ndim == 1:
        advantages = advantages[:, None]
    lengths = mask.sum(1)
    log_ratio = (new - old) * mask
    sequence = args.importance_sampling_level == "sequence"
    ratio = np.exp((log_ratio.sum(1) / lengths)[:, None] if sequence else log_ratio)
    kind = args.loss_type
    if kind == "cispo":
        loss = -np.minimum(ratio, args.epsilon_high) * advantages * new
    elif kind == "sapo":
        heat = np.where(advantages > 0, args.sapo_temperature_pos, args.sapo_temperature_neg)
        loss = -4 / heat / (1 + np.exp(-heat * (ratio - 1))) * advantages
    elif kind == "vespo":
        whole = np.exp(log_ratio.sum(1))[:, None]
        k = np.where(advantages >= 0, args.vespo_k_pos, args.vespo_k_neg)
        rate = np.where(advantages >= 0, args.vespo_lambda_pos, args.vespo_lambda_neg)
        loss = -np.exp(rate) * whole**k * np.exp(-rate * whole) * advantages * new
    else:
        loss = -np.minimum(ratio * advantages, np.clip(ratio, low, high) * advantages)
    if args.beta:
        kl = np.exp(ref - new) - (ref - new) - 1
        loss = loss + args.beta * kl * ratio  # TRL's unbiased reverse-KL gradient
    loss = loss * mask
    if kind in ("grpo", "sapo"):
        return (loss.sum(1) / lengths).mean()
    if kind == "bnpo":
        return loss.sum() / mask.sum()
    if kind == "dr_grpo":
        return loss.sum() / (len(mask) * args.max_completion_length)
    if kind == "luspo":
        return loss.sum(1).mean()
    return loss.sum() / (tokens_in_rollout / args.steps_per_generation)  # dapo, cispo, vespo
