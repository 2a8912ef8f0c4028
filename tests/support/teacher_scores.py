"""A teacher's scores by one plain forward pass of each sequence, and rollouts to score."""

import torch
from transformers import AutoModelForCausalLM

from tests.support.tiny_models import EOS, VOCABULARY
from utils.models.prefix.shared_prefix import CompletionBatch

CLOSE = {"rtol": 0, "atol": 1e-5}


def rollouts(seed: int = 0) -> CompletionBatch:
    """Three prompts of different lengths, four completions each; among them empty ones, single tokens, full
    width, and completions that end with the end-of-sequence token."""
    generator = torch.Generator().manual_seed(seed)
    prompt_lengths = torch.tensor([11, 5, 8]).repeat_interleave(4)
    lengths = torch.tensor([6, 3, 1, 0, 5, 6, 2, 4, 1, 6, 6, 3])
    prompts = torch.randint(3, VOCABULARY, (3, 11), generator=generator).repeat_interleave(4, dim=0)
    completions = torch.randint(3, VOCABULARY, (12, 6), generator=generator)
    completions[[1, 5, 8], lengths[[1, 5, 8]] - 1] = EOS
    prompt_mask = (torch.arange(11) >= 11 - prompt_lengths[:, None]).long()
    mask = (torch.arange(6) < lengths[:, None]).long()
    return CompletionBatch(prompts * prompt_mask, prompt_mask, completions * mask, mask)


def load_model(folder, dtype=torch.float32):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def plain_scores(model, batch: CompletionBatch, alpha: float = 1.0, columns: int = VOCABULARY):
    """The reference: one forward pass per completion, without padding; Q and V, [B, C]."""
    model = model.eval()
    shape = batch.completion_mask.shape
    q, v = torch.zeros(shape), torch.zeros(shape)
    for b in range(shape[0]):
        prompt = batch.prompt_ids[b][batch.prompt_mask[b].bool()].tolist()
        completion = batch.completion_ids[b][batch.completion_mask[b].bool()].tolist()
        with torch.no_grad():
            logits = model(torch.tensor([prompt + completion])).logits[0].float()
        for c, token in enumerate(completion):
            row = logits[len(prompt) + c - 1]
            q[b, c] = row[token]
            v[b, c] = alpha * torch.log(sum(torch.exp(row[:columns] / alpha)))
    return q, v


def assert_scores(found, wanted) -> None:
    torch.testing.assert_close(found.q, wanted[0], **CLOSE)
    torch.testing.assert_close(found.v, wanted[1], **CLOSE)


def one_line(raised) -> str:
    message = str(raised.value)
    assert "\n" not in message
    return message
