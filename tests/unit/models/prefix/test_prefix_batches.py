"""Prompts that begin alike, encoded once, against full forward passes and the plain path."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

from tests.support.small_models import CONFIGS, build
from utils.models.prefix import prefix_sampling
from utils.models.prefix.common_prefix import batches_by_prefix, encode_by_prefix, prefix_sets
from utils.models.prefix.prefix_sampling import DecodingRows, sample_completions
from utils.models.prefix.shared_prefix import CompletionBatch, group_prompts, output_head, unwrapped

REPORT = [7, 3, 9, 12, 5, 21, 8, 4, 17]
OTHER = [6, 3, 9, 12, 5, 21, 8, 4]
CASES = {
    "ragged": [REPORT + rest for rest in ([2, 3], [4], [5, 6, 7, 8, 9])] + [OTHER + [2], OTHER + [3, 4]],
    "identical": [REPORT, REPORT, OTHER + [3], OTHER + [5]],
    "one a prefix of another": [REPORT[:7], REPORT, REPORT + [2, 6]],
    "one alone": [[11, 13, 15], REPORT + [2], REPORT + [3, 5], REPORT + [6]],
    "positions used up": [REPORT * 5 + [2], REPORT * 5 + [3, 4, 5], REPORT + [6], REPORT + [7, 8]],
}
NOTHING = [[11, 13, 15], REPORT, OTHER, [2]]
TOKENS = 6


def padded(prompts):
    batch = CompletionBatch.of(prompts, [[]] * len(prompts), torch.device("cpu"))
    return batch.prompt_ids, batch.prompt_mask


def answer(model, prompts, **settings):
    settings = {"temperature": 0.0, "max_new_tokens": TOKENS, "eos_token_ids": [1]} | settings
    return sample_completions(model, *padded(prompts), pad_token_id=0, **settings)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_full_sequences(name, lora, case, monkeypatch):
    """Every logit that an answer was chosen by, of every step, in float64."""
    model, prompts = build(name, lora).double().eval(), CASES[case]
    states, advance = [], DecodingRows.advance

    def recorded(self, tokens):
        states.append((self.active.tolist(), advance(self, tokens)))
        return states[-1][1]

    monkeypatch.setattr(DecodingRows, "advance", recorded)
    groups = group_prompts(*padded(prompts))
    first, seen = encode_by_prefix(unwrapped(model), groups, DynamicCache(config=model.config))
    assert seen.sum(1).tolist() == groups.mask.sum(1).tolist()
    states.append((range(len(prompts)), first[groups.group]))  # then those of the steps, of the first answer
    found = answer(model, prompts, common_prefixes=True, log_probs=True)
    plain = answer(model, prompts, log_probs=True)
    assert torch.equal(found.ids, plain.ids) and torch.equal(found.mask, plain.mask)
    places = dict.fromkeys(range(len(prompts)), 0)
    with torch.no_grad():
        for active, rows in states[: found.ids.shape[1]]:
            logits = output_head(model)(rows)
            for index, row in zip(active, logits, strict=True):
                ids = prompts[index] + found.ids[index, : places[index]].tolist()
                wanted = model(input_ids=torch.tensor([ids])).logits[0, -1]
                torch.testing.assert_close(row, wanted, rtol=0, atol=1e-9)
                assert int(wanted.argmax()) == int(found.ids[index, places[index]])
                places[index] += 1
    assert list(places.values()) == found.mask.sum(1).tolist()


@pytest.mark.parametrize("name", CONFIGS)
def test_samples_are_those_of_the_plain_path(name):
    """Three samples a prompt, ended by several tokens: the same draws from the same logits."""
    model = build(name).double().eval()
    prompts = [prompt for prompt in CASES["ragged"] for _ in range(3)]
    settings = {"temperature": 1.0, "top_p": 0.95, "eos_token_ids": [1, 2, 3, 4], "log_probs": True}
    found, plain = (
        answer(model, prompts, generator=torch.Generator().manual_seed(3), common_prefixes=common, **settings)
        for common in (True, False)
    )
    assert torch.equal(found.ids, plain.ids)
    torch.testing.assert_close(found.log_probs, plain.log_probs, rtol=0, atol=1e-5)
    assert len({tuple(ids) for ids in found.token_lists()}) > 5


def test_eager_attention_gets_an_additive_mask():
    prompts = CASES["ragged"]
    found, plain = (
        answer(build("llama", attention="eager").eval(), prompts, common_prefixes=common, log_probs=True)
        for common in (True, False)
    )
    assert torch.equal(found.ids, plain.ids)
    torch.testing.assert_close(found.log_probs, plain.log_probs, rtol=1e-5, atol=2e-5)


def test_prompts_with_nothing_in_common_take_the_plain_path(monkeypatch):
    model = build("llama").eval()
    plain = answer(model, NOTHING, log_probs=True)
    found = answer(model, NOTHING, common_prefixes=True, log_probs=True)
    assert torch.equal(found.ids, plain.ids) and torch.equal(found.log_probs, plain.log_probs)
    cache = DynamicCache(config=model.config)
    assert encode_by_prefix(model, group_prompts(*padded(NOTHING)), cache) is None
    assert cache.get_seq_length() == 0
    monkeypatch.setattr(prefix_sampling, "encode_by_prefix", None)  # nobody who does not ask comes here
    answer(model, CASES["ragged"])


def test_fewer_tokens_run(monkeypatch):
    model, run = build("llama").eval(), []
    model.base_model.register_forward_pre_hook(
        lambda module, args, given: run.append(given["input_ids"].numel()), with_kwargs=True
    )
    prompts = [REPORT * 4 + [2, end] for end in range(2, 8)]
    answer(model, prompts, max_new_tokens=1)
    answer(model, prompts, max_new_tokens=1, common_prefixes=True)
    assert run == [6 * 38, 37, 6]


TEXTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=7), max_size=7)


def divisions(count):
    """Every way to cut a sequence into runs."""
    for cuts in range(2 ** max(0, count - 1)):
        ends = [place for place in range(1, count) if cuts >> (place - 1) & 1]
        yield list(zip([0, *ends], [*ends, count], strict=True)) if count else []


def saving(run):
    """Tokens saved by one set of sorted prompts, None where it is none."""
    prefix = 0
    while all(len(ids) > prefix + 1 for ids in run) and len({ids[prefix] for ids in run}) == 1:
        prefix += 1
    if len(run) > 1 and 2 * prefix < max(map(len, run)):
        return None
    return (len(run) - 1) * prefix


@settings(max_examples=200)
@given(TEXTS)
def test_sets_save_as_much_as_any_division_may(prompts):
    sets = prefix_sets(prompts)
    assert sorted(index for members, _ in sets for index in members) == list(range(len(prompts)))
    for members, prefix in sets:
        assert len({tuple(prompts[index][:prefix]) for index in members}) == 1
        assert all(len(prompts[index]) > prefix for index in members)
        assert len(members) > 1 or prefix == len(prompts[members[0]]) - 1
    ordered = sorted(prompts)
    savings = [[saving(ordered[a:b]) for a, b in runs] for runs in divisions(len(prompts))]
    best = max(sum(each) for each in savings if None not in each)
    assert sum((len(members) - 1) * prefix for members, prefix in sets) == best


@given(TEXTS, st.integers(1, 4))
def test_batches_hold_every_prompt_once(prompts, size):
    batches = batches_by_prefix(prompts, size)
    assert sorted(index for batch in batches for index in batch) == list(range(len(prompts)))
    assert all(len(batch) == size for batch in batches[:-1]) and all(batches)
    assert batches == batches_by_prefix([tuple(ids) for ids in prompts], size)


def test_reports_stay_together_and_an_instruction_alone_makes_no_set():
    instruction = [1, 2, 3]
    reports = [instruction + [start] * 9 for start in (5, 6, 7)]
    prompts = [reports[number % 3] + [number] for number in range(9)] + [instruction + [8] * 6]
    sets = [[0, 3, 6], [1, 4, 7], [2, 5, 8], [9]]
    assert [sorted(members) for members, _ in prefix_sets(prompts)] == sets
    assert sorted(map(sorted, batches_by_prefix(prompts[:9], 3))) == sets[:3]
