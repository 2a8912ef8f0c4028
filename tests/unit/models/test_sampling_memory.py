"""Sampling in little memory: a batch that does not fit is sampled in parts, and the samples are the same."""

import pytest
import torch

from tests.support.stand_ins import make_stand_in
from utils.data.prompts import token_ids
from utils.frame.files import UserError
from utils.models import sampling
from utils.models.loading import load_policy
from utils.models.sampling import generate
from utils.models.sampling_memory import Room, ran_out
from utils.models.settings import GenerationSection, ModelSection


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_stand_in("llama3", tmp_path_factory.mktemp("llama3"), scale=0.1, chat=False)


def test_what_counts_as_out_of_memory():
    assert ran_out(torch.OutOfMemoryError("CUDA out of memory. Tried"))
    assert ran_out(MemoryError())
    assert ran_out(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"))
    assert not ran_out(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_samples_in_parts_are_the_same_samples(model, monkeypatch, temperature):
    policy, tokenizer = load_policy(model, ModelSection())
    prompts = token_ids(tokenizer, [f"cash {number} in 20{number:02}" for number in range(7)])

    def sample(room=None):
        generator = torch.Generator().manual_seed(0)
        settings = {"temperature": temperature, "num_samples": 2, "generator": generator, "room": room}
        return generate(policy, tokenizer, prompts, max_new_tokens=6, batch_size=12, **settings)

    whole, stock, sizes = sample(), sampling.sample_completions, []

    def small(model, ids, *args, **kwargs):
        sizes.append(len(ids))
        if len(ids) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return stock(model, ids, *args, **kwargs)

    monkeypatch.setattr(sampling, "sample_completions", small)
    assert sample(Room(GenerationSection(batch_size="auto"))) == whole
    assert sizes == [12, 6, 3, 3, 3, 3, 2]  # what did not fit is not tried again
    with pytest.raises(UserError, match="out of memory sampling 12 completions at once: try") as raised:
        sample(Room(GenerationSection(batch_size=12)))
    assert "--batch_size auto, --generation.batch_size 6" in str(raised.value)
