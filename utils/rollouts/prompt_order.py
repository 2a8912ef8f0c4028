"""The order in which a run's seed presents the training prompts, to every method alike."""

import torch


def prompt_order(count: int, seed: int, epoch: int = 0) -> list[int]:
    """An epoch's order of ``count`` prompts: a permutation of 0 … count - 1.

    It is that of TRL's RepeatSampler, by which PPO, GRPO and RLOO draw their prompts; candidates are sampled
    in it too, so that preference pairs come from the prompts that the other methods see.
    """
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epoch):
        torch.randperm(count, generator=generator)
    return torch.randperm(count, generator=generator).tolist()


def prompts_from(first: int, number: int, count: int, per_rollout: int, seed: int) -> list[int]:
    """The ``first``-th prompt that a run draws (from 0) and those after it, ``number`` in all.

    As RepeatSampler does, an epoch leaves out the last of its ``count`` prompts that are too few for a
    rollout of ``per_rollout``.
    """
    whole = count // per_rollout * per_rollout
    epochs = {place // whole for place in range(first, first + number)}
    orders = {epoch: prompt_order(count, seed, epoch) for epoch in epochs}
    return [orders[place // whole][place % whole] for place in range(first, first + number)]
