"""The order of prompts that all methods share."""

import torch

from utils.rollouts.prompt_order import prompt_order


def test_the_order_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    assert sorted(prompt_order(100, 0)) == list(range(100))
    assert torch.equal(torch.get_rng_state(), before)
