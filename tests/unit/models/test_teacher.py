"""Teacher scoring against plain forward passes, memory, repeated work, and batches that are refused."""

import dataclasses
import logging
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, Gemma2Config, MistralConfig

from tests.support.small_models import SIZES
from tests.support.teacher_scores import assert_scores, load_model, one_line, plain_scores, rollouts
from tests.support.tiny_models import ARCHITECTURES, EOS, VOCABULARY
from utils.frame.files import UserError
from utils.models import teacher
from utils.models.prefix import prefix_scoring
from utils.models.prefix.shared_prefix import CompletionBatch
from utils.models.score_cache import ScoreCache
from utils.models.teacher import Teacher


def unpadded(batch: CompletionBatch, row: int) -> CompletionBatch:
    """One row of a batch, its padding cut off."""
    prompt, kept = batch.prompt_mask[row].bool(), batch.completion_mask[row].bool()
    ids = [batch.prompt_ids[row][prompt][None], batch.completion_ids[row][kept][None]]
    return CompletionBatch(ids[0], torch.ones_like(ids[0]), ids[1], torch.ones_like(ids[1]))


# ------------------------------------------------------------------------------------------------- scoring


@pytest.mark.parametrize("alpha", [1.0, 0.5, 3.0])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_scores_equal_a_plain_forward_pass_per_sequence(tiny_models, name, alpha):
    model, batch = load_model(tiny_models(name)), rollouts()
    scores = Teacher(model, VOCABULARY, alpha=alpha).score(batch)
    assert scores.q.dtype == scores.v.dtype == torch.float32
    assert scores.q.shape == batch.completion_mask.shape and not scores.q.requires_grad
    assert_scores(scores, plain_scores(model, batch, alpha))
    assert (scores.q - scores.v).max() <= 1e-5
    masked = ~batch.completion_mask.bool()
    assert not scores.q[masked].any() and not scores.v[masked].any()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_padding_makes_no_difference(tiny_models, name):
    """Neither its amount nor what it holds (the earlier implementation attended to it)."""
    model, batch = load_model(tiny_models(name)), rollouts()
    scorer = Teacher(model, VOCABULARY)
    wanted = scorer.score(batch)
    for row in range(len(batch.prompt_ids)):
        alone = scorer.score(unpadded(batch, row))
        length = alone.q.shape[1]
        assert_scores(alone, (wanted.q[row : row + 1, :length], wanted.v[row : row + 1, :length]))

    def wider(ids, mask, left, right):
        grown = [torch.nn.functional.pad(tensor, (left, right)) for tensor in (ids, mask)]
        grown[0][~grown[1].bool()] = 77
        return grown

    padded = CompletionBatch(
        *wider(batch.prompt_ids, batch.prompt_mask, 9, 0),
        *wider(batch.completion_ids, batch.completion_mask, 0, 4),
    )
    assert_scores(scorer.score(padded), [torch.nn.functional.pad(x, (0, 4)) for x in (wanted.q, wanted.v)])
    columns = dataclasses.replace(padded, positions="column")  # as TRL counts; a teacher never does
    assert_scores(scorer.score(columns), [torch.nn.functional.pad(x, (0, 4)) for x in (wanted.q, wanted.v)])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_columns_beyond_the_tokenizer_do_not_count(tiny_models, name):
    """Qwen2.5 pads its vocabularies to different sizes; the padding columns hold anything."""
    batch = rollouts()
    wanted = plain_scores(load_model(tiny_models(name)), batch)
    model = load_model(tiny_models(name))
    model.resize_token_embeddings(320, mean_resizing=False)
    with torch.no_grad():
        model.get_output_embeddings().weight[VOCABULARY:] = 30.0
    assert model(torch.tensor([[5, 6]])).logits.shape[-1] == 320
    assert_scores(Teacher(model, VOCABULARY).score(batch), wanted)


def test_the_end_of_sequence_token_is_scored_like_any_other(tiny_models):
    batch = rollouts()
    scores = Teacher(load_model(tiny_models("llama")), VOCABULARY).score(batch)
    ends = batch.completion_ids == EOS
    assert ends.sum() == 3 and (scores.q[ends] != 0).all() and (scores.v[ends] != 0).all()


def test_a_bfloat16_teacher_is_reduced_in_float32(tiny_models):
    model, batch = load_model(tiny_models("llama"), torch.bfloat16), rollouts()
    scores = Teacher(model, VOCABULARY).score(batch)
    q, v = plain_scores(model, batch)
    assert scores.q.dtype == torch.float32
    torch.testing.assert_close(scores.q, q, rtol=0.05, atol=0.05)
    torch.testing.assert_close(scores.v, v, rtol=0.05, atol=0.05)
    assert (scores.v != scores.v.bfloat16().float()).any()


def test_empty_completions_get_zeros_and_shift_no_other_row(tiny_models):
    model, batch = load_model(tiny_models("llama")), rollouts()
    wanted = plain_scores(model, batch)
    empty = batch.completion_mask.sum(1) == 0
    assert empty.any() and not empty.all()
    assert_scores(Teacher(model, VOCABULARY).score(batch), wanted)


@pytest.mark.parametrize("width", [0, 1, 5])
def test_a_batch_of_empty_completions_runs_no_model(tiny_models, width):
    model, batch = load_model(tiny_models("llama")), rollouts()
    counter = Counter(model)
    none = torch.zeros(12, width, dtype=torch.long)
    scores = Teacher(model, VOCABULARY).score(
        CompletionBatch(batch.prompt_ids, batch.prompt_mask, none, none)
    )
    assert scores.q.shape == scores.v.shape == (12, width) and not scores.q.any()
    assert not counter.tokens


def test_single_token_completions(tiny_models):
    model, batch = load_model(tiny_models("qwen2")), rollouts()
    one = torch.ones(12, 1, dtype=torch.long)
    batch = CompletionBatch(
        batch.prompt_ids, batch.prompt_mask, batch.completion_ids[:, :1].clamp(min=3), one
    )
    assert_scores(Teacher(model, VOCABULARY).score(batch), plain_scores(model, batch))


@pytest.mark.parametrize("side", ["prompt", "completion"])
def test_padding_on_the_wrong_side_is_an_error(tiny_models, side):
    batch = rollouts()
    flipped = {f"{side}_mask": getattr(batch, f"{side}_mask").flip(1)}
    with pytest.raises(ValueError, match=f"{side}s must be padded on the"):
        Teacher(load_model(tiny_models("llama")), VOCABULARY).score(dataclasses.replace(batch, **flipped))


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("inf"), float("nan")])
def test_alpha_must_be_positive(tiny_models, alpha):
    with pytest.raises(ValueError, match="alpha must be above 0"):
        Teacher(load_model(tiny_models("llama")), VOCABULARY, alpha=alpha)


# ------------------------------------------------------------------------------- memory and repeated work


class Counter:
    """Counts the tokens that the model's trunk runs, and the rows of logits its head makes, per call."""

    def __init__(self, model):
        self.tokens: list[int] = []
        self.logits: list[int] = []
        model.base_model.register_forward_pre_hook(
            lambda module, args, kwargs: self.tokens.append(kwargs["input_ids"].numel()), with_kwargs=True
        )
        model.get_output_embeddings().register_forward_pre_hook(
            lambda module, args: self.logits.append(len(args[0]))
        )


def test_long_batches_are_scored_in_slices_and_logits_in_pieces(tiny_models, monkeypatch):
    model, batch = load_model(tiny_models("llama")), rollouts()
    counter = Counter(model)
    whole = Teacher(model, VOCABULARY).score(batch)
    assert len(counter.tokens) == 2 and max(counter.logits) > 3
    monkeypatch.setattr(teacher, "SLICE_TOKENS", 40)
    monkeypatch.setattr(prefix_scoring, "LOGIT_BYTES", 3 * 4 * VOCABULARY)
    counter.tokens.clear(), counter.logits.clear()
    sliced = Teacher(model, VOCABULARY).score(batch)
    assert len(counter.tokens) > 6 and max(counter.tokens) <= 40 and max(counter.logits) == 3
    assert_scores(sliced, (whole.q, whole.v))


@given(st.lists(st.integers(1, 60), max_size=20))
def test_slices_hold_every_row_once_within_the_limit(lengths):
    parts = [lengths[part] for part in prefix_scoring.padded_parts(lengths, 50)]
    assert [length for part in parts for length in part] == lengths
    assert all(len(part) == 1 or len(part) * max(part) <= 50 for part in parts)
    ahead = zip(parts, parts[1:], strict=False)  # the next row would not have fitted
    assert all((len(part) + 1) * max(*part, following[0]) > 50 for part, following in ahead)


def test_prompts_are_encoded_once_and_equal_completions_scored_once(tiny_models):
    model, batch = load_model(tiny_models("llama")), rollouts()
    counter = Counter(model)
    scorer = Teacher(model, VOCABULARY)
    once = scorer.score(batch)
    assert counter.tokens[0] == 3 * 11  # three prompts, padded to the longest
    before, counter.tokens[:] = list(counter.tokens), []
    order = torch.randperm(36, generator=torch.Generator().manual_seed(0)) % 12
    names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
    thrice = scorer.score(CompletionBatch(*(getattr(batch, name)[order] for name in names)))
    assert sum(counter.tokens) <= sum(before)
    assert_scores(thrice, (once.q[order], once.v[order]))


def test_the_cache_answers_what_was_scored_before_bit_for_bit(tiny_models):
    model, batch = load_model(tiny_models("llama")), rollouts()
    counter, cache = Counter(model), ScoreCache(10**6)
    scorer = Teacher(model, VOCABULARY, cache=cache)
    first = scorer.score(batch)
    distinct = int((batch.completion_mask.sum(1) > 0).sum())
    assert cache.stats["misses"] == cache.stats["entries"] == distinct and cache.stats["hits"] == 0
    counter.tokens.clear()
    flipped = CompletionBatch(
        *(getattr(batch, field.name).flip(0) for field in dataclasses.fields(batch)[:4])
    )
    second = scorer.score(flipped)
    assert not counter.tokens and cache.stats["hits"] == distinct
    assert torch.equal(second.q.flip(0), first.q) and torch.equal(second.v.flip(0), first.v)
    # A batch of which a part is known runs the rest alone.
    new = dataclasses.replace(batch, completion_ids=batch.completion_ids.clone())
    new.completion_ids[0, 0] = 200
    assert_scores(scorer.score(new), plain_scores(model, new))
    assert cache.stats["misses"] == distinct + 1


def test_another_teacher_or_alpha_never_finds_the_scores(tiny_models):
    cache, batch = ScoreCache(10**6), rollouts()
    for name, alpha in (("llama", 1.0), ("llama", 0.5), ("qwen2", 1.0)):
        model = load_model(tiny_models(name))
        found = Teacher(model, VOCABULARY, alpha=alpha, cache=cache).score(batch)
        assert_scores(found, plain_scores(model, batch, alpha))
    assert cache.stats["hits"] == 0


def test_a_cache_of_size_0_is_no_cache(tiny_models):
    model, batch = load_model(tiny_models("llama")), rollouts()
    scorer = Teacher(model, VOCABULARY, cache=ScoreCache(0))
    for _ in range(2):
        assert_scores(scorer.score(batch), plain_scores(model, batch))
    assert scorer.cache.stats["misses"] == 0 and "identity" not in vars(scorer)


def test_the_identity_is_of_content_not_of_place(tiny_models, tmp_path):
    shutil.copytree(tiny_models("llama"), tmp_path / "copy")
    identity = Teacher(load_model(tiny_models("llama")), VOCABULARY).identity
    assert Teacher(load_model(tmp_path / "copy"), VOCABULARY).identity == identity
    nudged = load_model(tiny_models("llama"))
    with torch.no_grad():
        nudged.model.layers[1].mlp.up_proj.weight[3, 4] += 1e-6
    turned = load_model(tiny_models("llama"))
    turned.config.rope_parameters["rope_theta"] = 5.0
    others = [
        Teacher(nudged, VOCABULARY),
        Teacher(turned, VOCABULARY),
        Teacher(load_model(tiny_models("llama")), VOCABULARY, alpha=2.0),
        Teacher(load_model(tiny_models("llama")), VOCABULARY - 1),
        Teacher(load_model(tiny_models("llama"), torch.bfloat16), VOCABULARY),
    ]
    assert len({identity, *(other.identity for other in others)}) == 6


# ------------------------------------------------------------------------ models that cannot share prefixes

COMMON = {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": EOS, "pad_token_id": 0}
UNSHARED = {
    "keeps less than every past key": MistralConfig(
        **SIZES, **COMMON, num_key_value_heads=2, sliding_window=4
    ),
    "rescales its logits": Gemma2Config(**SIZES, **COMMON, num_key_value_heads=2, head_dim=4),
}


@pytest.mark.parametrize("reason", UNSHARED)
def test_other_models_are_scored_by_a_plain_pass_and_it_is_said_once(caplog, reason):
    torch.manual_seed(0)
    model, batch = AutoModelForCausalLM.from_config(UNSHARED[reason]), rollouts()
    scorer = Teacher(model, VOCABULARY, alpha=0.7, name="other")
    with caplog.at_level(logging.WARNING, logger=teacher.__name__):
        first = scorer.score(batch)
        scorer.score(batch)
    assert_scores(first, plain_scores(model, batch, 0.7))
    said = [message for message in caplog.messages if "without shared prefixes" in message]
    assert len(said) == 1 and reason in said[0] and "other" in said[0]


def test_a_plain_pass_over_whole_rows_reads_the_last_token_too():
    config = MistralConfig(
        **SIZES, **COMMON, num_key_value_heads=2, sliding_window=4, max_position_embeddings=9
    )
    model, ids = AutoModelForCausalLM.from_config(config), torch.arange(3, 13)[None]
    ones = torch.ones_like(ids)
    Teacher(model, VOCABULARY).score(CompletionBatch(ids[:, :6], ones[:, :6], ids[:, 6:9], ones[:, 6:9]))
    with pytest.raises(UserError, match="has 9 positions"):
        Teacher(model, VOCABULARY).score(CompletionBatch(ids[:, :6], ones[:, :6], ids[:, 6:], ones[:, 6:]))


# -------------------------------------------------------------------------------------------- what is refused


def test_non_finite_logits_name_their_rows_and_reach_no_cache(tiny_models):
    model, batch = load_model(tiny_models("llama")), rollouts()
    batch.completion_ids[:, :1] = torch.where(batch.completion_mask[:, :1] > 0, 100, 0)
    batch.completion_ids[4, 0] = batch.completion_ids[7, 0] = 101
    assert (batch.completion_ids == 101).sum() == 2
    model.get_input_embeddings().weight = torch.nn.Parameter(model.get_input_embeddings().weight.clone())
    with torch.no_grad():
        model.get_input_embeddings().weight[101] = torch.nan
    cache = ScoreCache(10**6)
    with pytest.raises(UserError, match=r"not finite for completions \[4, 7\] of the batch") as raised:
        Teacher(model, VOCABULARY, cache=cache, name="some/teacher").score(batch)
    assert "some/teacher" in one_line(raised) and "torch_dtype" in one_line(raised)
    assert cache.stats["entries"] == 0


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_broken_head_names_a_few_of_many_rows(tiny_models, value):
    model = load_model(tiny_models("llama"))
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    with torch.no_grad():
        model.lm_head.weight[5] = value
    with pytest.raises(UserError, match=r"completions \[0, 1, 2, 4, 5, 6, 7, 8\] and 3 more of the batch"):
        Teacher(model, VOCABULARY).score(rollouts())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_context_beyond_the_positions_is_refused_and_never_cut(tiny_models, name):
    """The earlier implementation cut the teacher's context, and paid 0 for what was cut."""
    model = load_model(tiny_models(name))
    scorer = Teacher(model, VOCABULARY, name="short")

    def batch(prompt: int, completion: int) -> CompletionBatch:
        ids = torch.randint(
            3, VOCABULARY, (2, prompt + completion), generator=torch.Generator().manual_seed(0)
        )
        mask = torch.ones_like(ids)
        mask[0, : prompt - 5] = 0
        parts = (ids[:, :prompt], mask[:, :prompt], ids[:, prompt:], mask[:, prompt:])
        return CompletionBatch(*parts)

    # 256 positions hold 250 prompt tokens and 6 of the completion, which predict its seventh.
    scores = scorer.score(batch(250, 7))
    assert (scores.v[:, -1] != 0).all()
    with pytest.raises(UserError) as raised:
        scorer.score(batch(250, 8))
    message = one_line(raised)
    for word in (
        "completion 1 of",
        "a prompt of 250 tokens",
        "8 of its own",
        "teacher short has 256 positions",
        "dataset.max_input_tokens",
        "generation.max_new_tokens",
        "model.teacher_name_or_path",
    ):
        assert word in message
    with pytest.raises(UserError, match="a prompt of 300 tokens"):
        scorer.score(batch(300, 1))


def test_tokens_beyond_the_tokenizer_are_refused(tiny_models):
    model, batch = load_model(tiny_models("llama")), rollouts()
    model.resize_token_embeddings(320, mean_resizing=False)
    batch.completion_ids[2, 0] = VOCABULARY
    with pytest.raises(UserError, match="completion 2 of the batch holds token 259, .* ends at 258"):
        Teacher(model, VOCABULARY).score(batch)
