"""The order in which a run's seed presents the training prompts, to every method alike."""

import torch


def prompt_order(count: int, seed: int) -> list[int]:
    """The first epoch's order of ``count`` prompts: a permutation of 0 … count - 1.

    It is that of TRL's RepeatSampler, by which PPO, GRPO and RLOO draw their prompts; candidates are sampled
    in it too, so that preference pairs come from the prompts that the other methods see.
    """
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
