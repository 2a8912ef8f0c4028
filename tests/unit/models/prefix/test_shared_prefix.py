"""Shared-prefix scoring and sampling against full forward passes and Transformers' own generation."""

import itertools
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    Gemma2Config,
    GenerationConfig,
    MistralConfig,
    T5Config,
)
from transformers.generation import TopKLogitsWarper, TopPLogitsWarper

from tests.support.small_models import CONFIGS, SIZES, VOCABULARY, build
from utils.models.prefix import prefix_scoring, shared_prefix
from utils.models.prefix.prefix_sampling import draw, sample_completions, truncate
from utils.models.prefix.prefix_scoring import score_completions, token_scores
from utils.models.prefix.shared_prefix import (
    CompletionBatch,
    batches_by_width,
    completion_states,
    group_prompts,
    obstacle,
    pack,
)


def rollouts(seed: int = 0) -> dict[str, torch.Tensor]:
    """Three prompts of different lengths, four completions each, rows shuffled.

    Completion lengths include a single token, an entirely masked row, and the full width.
    """
    generator = torch.Generator().manual_seed(seed)
    prompt_lengths = torch.tensor([9, 4, 6]).repeat_interleave(4)
    lengths = torch.tensor([7, 3, 1, 0, 5, 7, 2, 2, 1, 1, 1, 1])
    prompts = torch.randint(2, VOCABULARY, (3, 9), generator=generator).repeat_interleave(4, dim=0)
    completions = torch.randint(2, VOCABULARY, (12, 7), generator=generator)
    prompt_mask = (torch.arange(9) >= 9 - prompt_lengths[:, None]).long()
    completion_mask = (torch.arange(7) < lengths[:, None]).long()
    batch = {
        "prompt_ids": prompts * prompt_mask,
        "prompt_mask": prompt_mask,
        "completion_ids": completions * completion_mask,
        "completion_mask": completion_mask,
    }
    order = torch.randperm(12, generator=generator)
    return {name: value[order] for name, value in batch.items()}


def full_logits(model, batch: CompletionBatch) -> torch.Tensor:
    """The reference: one forward pass over whole sequences; logits [B, C, V] before each completion token."""
    ids = torch.cat([batch.prompt_ids, batch.completion_ids], dim=1)
    mask = torch.cat([batch.prompt_mask, batch.completion_mask], dim=1)
    given = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)} if batch.positions == "content" else {}
    return model(input_ids=ids, attention_mask=mask, **given).logits[:, batch.prompt_ids.shape[1] - 1 : -1]


def gradients(model, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_close_gradients(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-4, atol=1e-5 * float(value.abs().max()), msg=name
        )


# ------------------------------------------------------------------------------------------------ scoring


@pytest.mark.parametrize("positions", ["column", "content"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("pass_cost", [shared_prefix.PASS_COST, 0], ids=["one pass", "a pass for each width"])
def test_scores_and_gradients_equal_full_sequences(name, lora, positions, pass_cost, monkeypatch):
    monkeypatch.setattr(shared_prefix, "PASS_COST", pass_cost)
    model = build(name, lora)
    batch = CompletionBatch(**rollouts(), positions=positions)
    mask = batch.completion_mask
    logits = full_logits(model, batch) / 0.7
    log_probs = logits.log_softmax(-1)
    entropy = -(log_probs.exp() * log_probs).sum(-1) * mask
    chosen = log_probs.gather(-1, batch.completion_ids[..., None]).squeeze(-1) * mask
    weights = torch.randn(mask.shape, generator=torch.Generator().manual_seed(1))
    wanted = gradients(model, (weights * chosen + weights.flip(0) * entropy).sum())

    scores = score_completions(model, batch, temperature=0.7, entropy=True)
    found_chosen, found_entropy = batch.scatter(scores.log_prob), batch.scatter(scores.entropy)
    torch.testing.assert_close(found_chosen, chosen, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(found_entropy, entropy, rtol=1e-5, atol=2e-5)
    found = gradients(model, (weights * found_chosen + weights.flip(0) * found_entropy).sum())
    assert_close_gradients(found, wanted)


def test_eager_attention_gets_an_additive_mask():
    batch = CompletionBatch(**rollouts())
    eager, sdpa = (
        score_completions(build("llama", attention=name), batch).log_prob for name in ("eager", "sdpa")
    )
    torch.testing.assert_close(eager, sdpa, rtol=1e-5, atol=2e-5)


def test_teacher_scores_are_logits_and_log_sum_exp_of_the_kept_columns():
    model, batch, alpha, kept = build("llama"), CompletionBatch(**rollouts()), 0.5, VOCABULARY - 3
    batch.completion_ids.clamp_(max=kept - 1)
    logits = full_logits(model, batch)[batch.completion_mask.bool()][:, :kept]
    scores = score_completions(model, batch, temperature=alpha, vocab_size=kept)
    torch.testing.assert_close(
        alpha * scores.logsumexp, alpha * (logits / alpha).logsumexp(-1), rtol=1e-5, atol=2e-5
    )
    wanted = logits.gather(-1, batch.tokens()[:, None]).squeeze(-1)
    torch.testing.assert_close(alpha * scores.logit, wanted, rtol=1e-5, atol=2e-5)


def test_logits_in_pieces_change_nothing(monkeypatch):
    head = torch.nn.Linear(6, VOCABULARY)
    states, tokens = torch.randn(50, 6), torch.randint(VOCABULARY, (50,))
    results = []
    for limit in (2**26, 4 * VOCABULARY * 7):
        monkeypatch.setattr(prefix_scoring, "LOGIT_BYTES", limit)
        scores = token_scores(head, states, tokens, entropy=True)
        loss = (scores.log_prob + scores.entropy).square().sum()
        results.append((scores.log_prob.detach(), gradients(head, loss)))
    torch.testing.assert_close(results[0][0], results[1][0])
    assert_close_gradients(results[1][1], results[0][1])


def test_a_batch_without_completion_tokens_still_has_a_gradient():
    model, inputs = build("llama"), rollouts()
    inputs["completion_mask"] = torch.zeros_like(inputs["completion_mask"])
    batch = CompletionBatch(**inputs)
    values = batch.scatter(score_completions(model, batch).log_prob)
    assert values.shape == inputs["completion_ids"].shape and not values.any()
    values.sum().backward()


def test_each_distinct_prompt_is_encoded_once():
    model, batch = build("llama"), CompletionBatch(**rollouts())
    shapes = []
    model.model.embed_tokens.register_forward_pre_hook(lambda _, given: shapes.append(tuple(given[0].shape)))
    score_completions(model, batch)
    prompts, completions = shapes
    assert prompts == (3, 9)
    # Six completions have more than one token; packing puts some of them in one row, as wide as the longest.
    assert completions[0] < 6 and completions[1] == 6


@pytest.mark.parametrize(
    ("name", "message"), [("prompt_mask", "padded on the left"), ("completion_mask", "padded on the right")]
)
def test_padding_on_the_wrong_side_is_an_error(name, message):
    inputs = rollouts()
    inputs[name] = inputs[name].flip(1)
    with pytest.raises(ValueError, match=message):
        completion_states(build("llama"), CompletionBatch(**inputs))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (MistralConfig(**SIZES, vocab_size=9, sliding_window=4), "cache"),
        (Gemma2Config(**SIZES, vocab_size=9, head_dim=4), "cache|rescales"),
        (T5Config(vocab_size=9, d_model=8, d_ff=8, num_layers=1, num_heads=1), "encoder-decoder"),
    ],
    ids=["sliding window", "softcap", "encoder-decoder"],
)
def test_models_that_cannot_share_are_told_apart(config, reason):
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        model = auto.from_config(config)
    assert re.search(reason, obstacle(model))
    assert obstacle(build("llama")) is None


def test_gradient_checkpointing_is_an_error():
    model = build("llama").train()
    model.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="gradient checkpointing"):
        completion_states(model, CompletionBatch(**rollouts()))
    with torch.no_grad(), pytest.raises(ValueError, match="gradient checkpointing"):
        sample_completions(
            model, *padded_prompts(), max_new_tokens=2, eos_token_ids=[1], pad_token_id=0, temperature=0
        )


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), min_size=1, max_size=20), st.integers(1, 20))
def test_packed_completions_never_overlap(items, capacity):
    lengths, group = [length for length, _ in items], [prompt for _, prompt in items]
    packing = pack(lengths, group, capacity)
    taken: dict[int, list[int]] = {}
    for length, prompt, row, start in zip(lengths, group, packing.row, packing.offset, strict=True):
        if length:
            assert packing.prompt[row] == prompt
            taken.setdefault(row, []).extend(range(start, start + length))
    assert sorted(taken) == list(range(len(packing.prompt)))
    for row, columns in taken.items():
        assert sorted(columns) == list(range(packing.width[row]))  # no overlap, no gap
        longest = max(n for n, r in zip(lengths, packing.row, strict=True) if r == row)
        assert len(columns) <= max(capacity, longest)


def test_completions_go_to_the_first_row_with_room_longest_first():
    packing = pack([3, 7, 4, 5, 2], [0, 0, 0, 0, 1], 10)
    assert packing == ([0, 0, 1, 1, 2], [7, 0, 5, 0, 0], [0, 0, 1], [10, 9, 2])


@given(st.lists(st.integers(1, 9), max_size=7), st.integers(0, 12))
def test_rows_are_divided_into_the_cheapest_batches(widths, pass_cost):
    """Against all ways to divide them."""

    def cost(batches):
        return sum(len(batch) * max(widths[row] for row in batch) + pass_cost for batch in batches)

    def divisions(rows):
        if not rows:
            yield []
            return
        first, *rest = rows
        for size in range(len(rest) + 1):
            for others in itertools.combinations(rest, size):
                for division in divisions([row for row in rest if row not in others]):
                    yield [[first, *others], *division]

    found = batches_by_width(widths, pass_cost)
    assert sorted(itertools.chain(*found)) == list(range(len(widths)))
    assert cost(found) == min(map(cost, divisions(list(range(len(widths))))))
    assert [max(widths[row] for row in batch) for batch in found] == sorted(
        {max(widths[row] for row in batch) for batch in found}, reverse=True
    )


def test_prompts_are_grouped_by_their_real_tokens():
    ids = torch.tensor([[7, 5, 6], [0, 5, 6], [5, 5, 6], [9, 5, 6]])
    mask = torch.tensor([[0, 1, 1], [0, 1, 1], [1, 1, 1], [0, 1, 1]])
    groups = group_prompts(ids, mask)
    assert groups.group == [0, 0, 1, 0] and groups.trimmed == 0 and len(groups.ids) == 2
    assert group_prompts(ids[[0, 1, 3]], mask[[0, 1, 3]]).ids.tolist() == [[5, 6]]


# ----------------------------------------------------------------------------------------------- sampling


def padded_prompts(copies: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = rollouts()
    keep = group_prompts(inputs["prompt_ids"], inputs["prompt_mask"])
    return keep.ids.repeat_interleave(copies, dim=0), keep.mask.long().repeat_interleave(copies, dim=0)


def sample(model, ids, mask, eos=(1,), seed=0, **kwargs):
    kwargs = {"max_new_tokens": 10, **kwargs}
    generator = torch.Generator().manual_seed(seed)
    return sample_completions(
        model, ids, mask, eos_token_ids=list(eos), pad_token_id=0, generator=generator, **kwargs
    )


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_equals_generate(name, lora):
    model = build(name, lora).eval()
    ids, mask = padded_prompts(copies=2)
    # Half of the vocabulary ends a completion, so that rows finish at different steps.
    for eos in ([VOCABULARY], list(range(1, VOCABULARY, 2)), [3, 4]):
        found = sample(model, ids, mask, eos, temperature=0)
        config = GenerationConfig(do_sample=False, max_new_tokens=10, eos_token_id=eos, pad_token_id=0)
        wanted = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        assert torch.equal(found.ids, wanted[:, ids.shape[1] :])


def test_finished_rows_leave_without_a_trace():
    model = build("llama").eval()
    ids, mask = padded_prompts(copies=6)
    ids, mask = torch.cat([ids, ids[:2]]), torch.cat([mask, mask[:2]])  # groups of 8, 6 and 6
    endless = sample(model, ids, mask, eos=[])
    assert endless.mask.all()
    for eos in ([5, 6, 7], list(range(2, 20))):
        stopped = sample(model, ids, mask, eos)
        assert int(stopped.mask.sum(1).max()) > 1 and int(stopped.mask.sum(1).min()) < 10
        for full, row in zip(endless.token_lists(), stopped.token_lists(), strict=True):
            ends = [i for i, token in enumerate(full) if token in eos]
            assert row == (full[: ends[0] + 1] if ends else full)


def test_sampling_is_reproducible_and_in_the_generator():
    model = build("qwen2").eval()
    ids, mask = padded_prompts(copies=4)
    first = sample(model, ids, mask)
    torch.manual_seed(123)
    assert torch.equal(first.ids, sample(model, ids, mask).ids)
    assert not torch.equal(first.ids, sample(model, ids, mask, seed=1).ids)


@pytest.mark.parametrize("name", CONFIGS)
def test_sampled_log_probs_equal_scores(name):
    model = build(name).eval()
    ids, mask = padded_prompts(copies=4)
    found = sample(
        model, ids, mask, eos=[3, 4, 5, 6], temperature=1.3, top_k=9, vocab_size=20, log_probs=True
    )
    batch = CompletionBatch(ids, mask, found.ids, found.mask)
    with torch.no_grad():
        wanted = batch.scatter(score_completions(model, batch, temperature=1.3).log_prob)
    torch.testing.assert_close(found.log_probs, wanted, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    "setting",
    [{}, {"temperature": 2.0}, {"top_k": 5}, {"top_p": 0.8}, {"vocab_size": 12, "top_k": 8, "top_p": 0.9}],
    ids=str,
)
def test_sampled_distribution(setting):
    """Chi-square of the first two tokens, jointly, against the truncated softmax of full forward passes."""
    model = build("llama", seed=3).eval()
    prompt, size = padded_prompts()[0][2:3, -4:], 3000
    ids = prompt.expand(size, -1)
    found = sample(model, ids, torch.ones_like(ids), eos=[], max_new_tokens=2, **setting).ids

    def distribution(logits):
        logits = logits / setting.get("temperature", 1.0)
        logits[:, setting.get("vocab_size", VOCABULARY) :] = -torch.inf
        if "top_k" in setting:
            logits = TopKLogitsWarper(setting["top_k"])(None, logits)
        if "top_p" in setting:
            logits = TopPLogitsWarper(setting["top_p"])(None, logits)
        return logits.softmax(-1).double()

    with torch.no_grad():
        first = distribution(model(prompt).logits[:, -1])[0]
        extended = torch.cat([prompt.expand(VOCABULARY, -1), torch.arange(VOCABULARY)[:, None]], dim=1)
        joint = (first[:, None] * distribution(model(extended).logits[:, -1])).flatten()
    counts = torch.bincount(found[:, 0] * VOCABULARY + found[:, 1], minlength=VOCABULARY**2).double()
    assert not counts[joint == 0].any()
    order = joint.argsort()
    order = order[joint[order] > 0]
    rare = int((joint[order].cumsum(0) * size < 5).sum()) + 1  # pooled, as the test asks for
    pooled = [torch.cat([x[order[:rare]].sum()[None], x[order[rare:]]]) for x in (counts, joint * size)]
    assert chisquare(*pooled, sum_check=False).pvalue > 1e-3


def test_draw_never_takes_an_impossible_token():
    logits = torch.tensor([[0.0, -torch.inf, 0.0, -torch.inf]]).expand(5, -1)
    tokens = draw(logits, torch.tensor([0.0, 0.49, 0.5, 0.99, 1 - 2**-53], dtype=torch.float64))
    assert tokens[:4].tolist() == [0, 0, 2, 2] and tokens[4] in (0, 2)


def test_truncation_keeps_the_likeliest_token():
    kept = truncate(torch.tensor([[0.1, 3.0, 0.2]]), top_p=1e-12, top_k=0)
    assert kept.isfinite().tolist() == [[False, True, False]]


@pytest.mark.parametrize(
    "setting", [{"temperature": -1}, {"top_p": 0}, {"top_k": -1}, {"max_new_tokens": 0}], ids=str
)
def test_settings_out_of_range_are_errors(setting):
    with pytest.raises(ValueError, match="need temperature"):
        sample(build("llama"), *padded_prompts(), **setting)


@pytest.mark.parametrize("temperature", [0, 1])
def test_non_finite_logits_stop_sampling(temperature):
    model = build("llama")
    with torch.no_grad():
        model.lm_head.weight[3, 0] = torch.nan
    with pytest.raises(FloatingPointError, match=r"token 0 of completions \[0, 1, 2\]"):
        sample(model, *padded_prompts(), temperature=temperature)
