"""Answers to prompts against Transformers' own generate, and loading and saving of policies."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.stand_ins import make_padded_stand_in
from utils.data.prompts import token_ids
from utils.frame.files import REPO_ROOT, UserError
from utils.models import sampling
from utils.models.loading import (
    adapter_base,
    add_lora,
    load_base,
    load_policy,
    load_tokenizer,
    portable,
    save_policy,
)
from utils.models.settings import LoraSection, ModelSection

ARCHITECTURES = ("llama", "qwen2", "gpt2")
PROMPTS = ["a rather long prompt: 7 * 6 = ", "x", "2+2=", "why?", "a middling one:", "x"]
TOKENS = 12


@pytest.fixture(scope="module")
def policies(tiny_models):
    """A factory: architecture -> (model in evaluation mode, tokenizer), loaded once."""
    loaded = {}

    def get(architecture):
        if architecture not in loaded:
            loaded[architecture] = load_policy(tiny_models(architecture), ModelSection())
        return loaded[architecture]

    return get


@pytest.fixture(scope="module")
def padded(tmp_path_factory):
    """A model whose likeliest tokens are none of its tokenizer's, and that tokenizer."""
    model, tokenizer = load_policy(
        make_padded_stand_in(tmp_path_factory.mktemp("padded") / "model"), ModelSection()
    )
    assert reference(model, tokenizer, PROMPTS[0])[0] >= len(tokenizer)
    return model, tokenizer


def generate(model, tokenizer, prompts: list[str], **settings):
    return sampling.generate(model, tokenizer, token_ids(tokenizer, prompts), **settings)


def reference(model, tokenizer, prompt: str) -> list[int]:
    """Greedy tokens of Transformers' generate for one prompt on its own, the end token included."""
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    output = model.generate(
        **inputs, do_sample=False, max_new_tokens=TOKENS, pad_token_id=tokenizer.pad_token_id
    )
    return output[0, inputs["input_ids"].shape[1] :].tolist()


def ending(model, tokenizer, monkeypatch) -> None:
    """Let a token that some answer first holds in its middle end sequences: lengths then differ."""
    answers = [reference(model, tokenizer, prompt) for prompt in PROMPTS]
    token = next(ids[at] for ids in answers for at in range(2, TOKENS - 1) if ids[at] not in ids[:at])
    monkeypatch.setattr(model.generation_config, "eos_token_id", [tokenizer.eos_token_id, token])


# --------------------------------------------------------------------------------------------- generate


@pytest.mark.parametrize("batch_size", [1, 2, 64])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_equals_transformers_in_the_prompts_order(policies, monkeypatch, architecture, batch_size):
    """One answer per prompt, in order, whatever shares its batch and its padding; ends are recognised."""
    model, tokenizer = policies(architecture)
    ending(model, tokenizer, monkeypatch)
    answers = generate(model, tokenizer, PROMPTS, max_new_tokens=TOKENS, batch_size=batch_size)
    wanted = [reference(model, tokenizer, prompt) for prompt in PROMPTS]
    assert [answer.token_ids for answer in answers] == wanted
    assert len({tuple(ids) for ids in wanted}) > 3  # the tiny models do tell prompts apart
    ends = set(model.generation_config.eos_token_id)
    assert [answer.truncated for answer in answers] == [ids[-1] not in ends for ids in wanted]
    assert any(1 < len(ids) < TOKENS for ids in wanted)  # some do end, and not at once
    assert [answer.text for answer in answers] == [
        tokenizer.decode(ids, skip_special_tokens=True) for ids in wanted
    ]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_fallback_gives_the_same_greedy_answers(policies, monkeypatch, architecture):
    model, tokenizer = policies(architecture)
    ending(model, tokenizer, monkeypatch)
    shared = generate(model, tokenizer, PROMPTS, max_new_tokens=TOKENS, batch_size=3)
    monkeypatch.setattr(sampling, "obstacle", lambda model: "a test says so")
    monkeypatch.setattr(sampling, "sample_completions", None)
    assert generate(model, tokenizer, PROMPTS, max_new_tokens=TOKENS, batch_size=3) == shared


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("fallback", [False, True])
def test_no_token_beyond_the_tokenizer_is_sampled(padded, monkeypatch, fallback, temperature):
    """The answers of a model that has no other columns; left alone, the padded ones are the likeliest."""
    model, tokenizer = padded
    if fallback:
        monkeypatch.setattr(sampling, "obstacle", lambda model: "a test says so")

    def answers(policy):
        generator = torch.Generator().manual_seed(0)
        found = generate(
            policy, tokenizer, PROMPTS, max_new_tokens=TOKENS, temperature=temperature, generator=generator
        )
        return [answer.token_ids for answer in found]

    found = answers(model)
    assert max(map(max, found)) < len(tokenizer)
    if not (fallback and temperature):  # Transformers draws a random number for each column
        cut = copy.deepcopy(model)
        cut.resize_token_embeddings(len(tokenizer))
        assert found == answers(cut)


def test_samples_of_a_prompt_stand_together(policies):
    """With temperature near zero every sample is the greedy answer, which tells whose it is."""
    model, tokenizer = policies("llama")
    greedy = generate(model, tokenizer, PROMPTS, max_new_tokens=TOKENS)
    seed = torch.Generator().manual_seed(0)
    samples = generate(
        model,
        tokenizer,
        PROMPTS,
        max_new_tokens=TOKENS,
        temperature=1e-4,
        num_samples=3,
        batch_size=7,
        generator=seed,
    )
    assert samples == [answer for answer in greedy for _ in range(3)]


@pytest.mark.parametrize("fallback", [False, True])
def test_sampling_is_the_generators(policies, monkeypatch, fallback):
    """The same generator gives the same answers, whatever the global one does; another gives others."""
    model, tokenizer = policies("llama")
    if fallback:
        monkeypatch.setattr(sampling, "obstacle", lambda model: "a test says so")

    def draw(seed):
        torch.manual_seed(seed + 100)
        state = torch.get_rng_state()
        answers = generate(
            model,
            tokenizer,
            PROMPTS,
            max_new_tokens=TOKENS,
            temperature=1.0,
            num_samples=4,
            generator=torch.Generator().manual_seed(seed % 2),
        )
        assert torch.equal(torch.get_rng_state(), state)
        return [answer.token_ids for answer in answers]

    first, other, again = draw(0), draw(1), draw(2)
    assert first == again != other
    groups = [first[start : start + 4] for start in range(0, len(first), 4)]
    assert all(len({tuple(ids) for ids in group}) > 1 for group in groups)


def test_batches_count_completions_and_hold_prompts_of_similar_length(policies):
    model, tokenizer = policies("llama")
    seen = []

    def progress(batches):
        seen.extend(batches)
        return batches

    generate(model, tokenizer, PROMPTS, max_new_tokens=2, num_samples=2, batch_size=4, progress=progress)
    lengths = [[len(PROMPTS[index]) for index in batch] for batch in seen]
    assert [len(batch) for batch in seen] == [2, 2, 2]
    assert sum(lengths, []) == sorted(map(len, PROMPTS))


def test_the_models_mode_is_kept(policies):
    model, tokenizer = policies("llama")
    for training in (True, False):
        model.train(training)
        generate(model, tokenizer, ["x"], max_new_tokens=1)
        assert model.training == training
    model.eval()


def test_no_prompts_give_no_answers(policies):
    model, tokenizer = policies("llama")
    assert generate(model, tokenizer, [], max_new_tokens=4) == []


def test_too_long_a_prompt_is_refused_in_one_line(policies):
    """The tiny models have 256 positions and tokenizers of a token per byte."""
    model, tokenizer = policies("llama")
    assert len(generate(model, tokenizer, ["y" * 252], max_new_tokens=4)) == 1
    with pytest.raises(
        UserError, match="a prompt of 253 tokens and max_new_tokens 4 exceed .* 256"
    ) as caught:
        generate(model, tokenizer, ["x", "y" * 253], max_new_tokens=4)
    assert "\n" not in str(caught.value)


# --------------------------------------------------------------------------------------------- loading


def adapted(base, tmp_path, seed=0):
    """An adapter folder on ``base`` whose adapter changes the policy, and that policy's weights."""
    model, tokenizer = load_policy(base, ModelSection(), trainable=True)
    model = add_lora(model, LoraSection(r=4), seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.2, generator=torch.Generator().manual_seed(1))
    save_policy(model, tokenizer, tmp_path / "adapter")
    return model, tokenizer


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


@pytest.mark.parametrize("trainable", [False, True])
def test_an_adapter_comes_back(tiny_models, tmp_path, trainable):
    model, tokenizer = adapted(tiny_models("llama"), tmp_path)
    ids = tokenizer("any text", return_tensors="pt")["input_ids"]
    wanted = logits(model, ids)
    base = logits(load_base(tiny_models("llama"), ModelSection()), ids)
    assert not torch.allclose(wanted, base, atol=1e-2)
    loaded, again = load_policy(tmp_path / "adapter", ModelSection(), trainable=trainable)
    torch.testing.assert_close(logits(loaded, ids), wanted, rtol=1e-4, atol=1e-4)
    assert again.get_vocab() == tokenizer.get_vocab() and again.padding_side == "left"
    trained = [name for name, parameter in loaded.named_parameters() if parameter.requires_grad]
    assert loaded.training is False or trainable
    if trainable:
        assert trained and all("lora_" in name for name in trained)


def test_a_full_model_comes_back(tiny_models, tmp_path):
    model, tokenizer = load_policy(tiny_models("qwen2"), ModelSection(), trainable=True)
    with torch.no_grad():
        model.model.norm.weight.add_(0.5)
    save_policy(model, tokenizer, tmp_path / "full")
    assert adapter_base(tmp_path / "full") is None
    loaded, _ = load_policy(tmp_path / "full", ModelSection())
    ids = tokenizer("any text", return_tensors="pt")["input_ids"]
    torch.testing.assert_close(logits(loaded, ids), logits(model.eval(), ids))


def test_what_is_saved_is_plain_and_portable(tmp_path):
    """Safetensors and JSON, no model card; the base is named relative to the repository, modules in order."""
    _, tokenizer = adapted("assets/student", tmp_path)
    files = sorted(path.name for path in (tmp_path / "adapter").iterdir())
    assert files == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "assets/student"
    assert config["target_modules"] == sorted(config["target_modules"])
    assert adapter_base(tmp_path / "adapter") == "assets/student"
    model, _ = load_policy(tmp_path / "adapter", ModelSection())
    assert generate(model, tokenizer, ["x"], max_new_tokens=1)
    full = load_base("assets/student", ModelSection())
    save_policy(full, tokenizer, tmp_path / "full")
    assert {path.suffix for path in (tmp_path / "full").iterdir()} == {".json", ".safetensors"}
    for path in tmp_path.glob("*/*.json"):
        assert str(REPO_ROOT) not in path.read_text(encoding="utf-8"), path


def test_saving_twice_gives_the_same_bytes_and_the_seed_decides(tiny_models, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(len(name) + ord(name))  # the global state must not matter
        adapted(tiny_models("llama"), tmp_path / name, seed)
    first, same, other = (
        {path.name: path.read_bytes() for path in (tmp_path / name / "adapter").iterdir()} for name in "abc"
    )
    assert first == same
    assert {name for name in first if first[name] != other[name]} == {"adapter_model.safetensors"}


def test_a_fresh_adapter_leaves_the_policy_as_it_is(tiny_models):
    model, tokenizer = load_policy(tiny_models("llama"), ModelSection())
    ids = tokenizer("any text", return_tensors="pt")["input_ids"]
    before = logits(model, ids)
    assert torch.equal(logits(add_lora(model, LoraSection(), 0), ids), before)


def test_only_the_policys_own_adapter_is_saved(tiny_models, tmp_path):
    """Trainers keep a frozen copy of the adapter as the reference; it is no part of the policy."""
    model, tokenizer = adapted(tiny_models("llama"), tmp_path)
    model.add_adapter("ref", model.peft_config["default"])
    save_policy(model, tokenizer, tmp_path / "again")
    assert not (tmp_path / "again" / "ref").exists()
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("adapter", "again"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_portable_names_what_lies_inside_the_repository():
    assert portable(str(REPO_ROOT / "assets" / "student")) == "assets/student"
    assert portable("Qwen/Qwen2.5-0.5B") == "Qwen/Qwen2.5-0.5B"
    assert portable("/elsewhere/model") == "/elsewhere/model"


def test_a_hub_name_stays_one_in_any_working_directory(monkeypatch):
    monkeypatch.chdir(REPO_ROOT / "docs")
    assert portable("Qwen/Qwen2.5-0.5B") == "Qwen/Qwen2.5-0.5B"


@pytest.mark.parametrize("name", ["assets/nobody", "./nobody", "/nowhere/nobody"])
def test_a_missing_folder_is_one_line(name):
    with pytest.raises(UserError, match=f"{name}: no such model folder") as caught:
        load_policy(name, ModelSection())
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_model_is_one_line(tiny_models, tmp_path):
    """Nothing at all, a tokenizer alone, and weights that are not safetensors."""
    with pytest.raises(UserError, match="no tokenizer could be loaded") as caught:
        load_policy(tmp_path, ModelSection())
    assert "\n" not in str(caught.value)
    AutoTokenizer.from_pretrained(tiny_models("llama")).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no model could be loaded") as caught:
        load_policy(tmp_path, ModelSection())
    assert "\n" not in str(caught.value)
    model = AutoModelForCausalLM.from_pretrained(tiny_models("llama"))
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="no model could be loaded"):
        load_policy(tmp_path, ModelSection())


def test_tokenizers_without_padding_pad_with_the_end_and_need_one(tiny_models, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_models("llama"))
    for missing in (["pad_token"], ["pad_token", "eos_token"]):
        tokenizer.save_pretrained(tmp_path)
        path = tmp_path / "tokenizer_config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps({key: value for key, value in config.items() if key not in missing}))
        if len(missing) == 1:
            loaded = load_tokenizer(tmp_path)
            assert loaded.pad_token == loaded.eos_token == "<eos>" and loaded.padding_side == "left"
        else:
            with pytest.raises(UserError, match="no end-of-sequence token"):
                load_tokenizer(tmp_path)
