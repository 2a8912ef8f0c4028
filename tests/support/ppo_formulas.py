"""PPO's formulas by plain loops in NumPy, written out from their definitions."""

import math

import numpy as np


def numpy_gae(rewards, values, lengths, gamma, lam):
    """The sum of discounted temporal-difference errors, each written out from its definition."""
    advantages = np.zeros_like(rewards)
    for row, length in enumerate(lengths):
        for t in range(length):
            for k in range(t, length):
                after = values[row, k + 1] if k + 1 < length else 0.0
                delta = rewards[row, k] + gamma * after - values[row, k]
                advantages[row, t] += (gamma * lam) ** (k - t) * delta
    return advantages


def numpy_policy_loss(new, old, advantages, c, high=None, dual=None):
    """(clipped surrogate loss by token, which tokens the clip decided).

    ``high`` is another c above 1; with ``dual`` no loss of a negative advantage is above -dual times it.
    """
    high = c if high is None else high
    losses, clips = np.zeros_like(new), np.zeros(new.shape, bool)
    for i in np.ndindex(new.shape):
        ratio = math.exp(new[i] - old[i])
        surrogate, bounded = ratio * advantages[i], min(max(ratio, 1 - c), 1 + high) * advantages[i]
        losses[i], clips[i] = -min(surrogate, bounded), bounded < surrogate
        if dual is not None and advantages[i] < 0 and losses[i] > -dual * advantages[i]:
            losses[i], clips[i] = -dual * advantages[i], True
    return losses, clips


def numpy_value_loss(new, old, returns, c):
    """(clipped squared error by token, which tokens the clip decided)."""
    losses, clips = np.zeros_like(new), np.zeros(new.shape, bool)
    for i in np.ndindex(new.shape):
        near = min(max(new[i], old[i] - c), old[i] + c)
        free, clipped = (new[i] - returns[i]) ** 2, (near - returns[i]) ** 2
        losses[i], clips[i] = max(free, clipped) / 2, clipped > free
    return losses, clips
