"""What can be a teacher: folders that load, those that are refused, and tokenizers that are not the same."""

import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import pre_tokenizers
from transformers import (
    BartConfig,
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    LlamaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.models.bart import BartForConditionalGeneration

from tests.support.small_models import SIZES
from tests.support.teacher_scores import assert_scores, load_model, one_line, plain_scores, rollouts
from tests.support.tiny_models import ARCHITECTURES, VOCABULARY, make_tiny_tokenizer
from utils.frame.files import UserError
from utils.models.settings import ModelSection
from utils.models.teacher import Teacher, check_same_tokenizer


def section(folder, **more) -> ModelSection:
    return ModelSection(teacher_name_or_path=str(folder), **more)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_full_model_is_loaded_from_its_folder(tiny_models, name):
    loaded = Teacher.load(section(tiny_models(name)), make_tiny_tokenizer(), alpha=0.5)
    assert not loaded.model.training and not any(p.requires_grad for p in loaded.model.parameters())
    assert loaded.alpha == 0.5 and loaded.vocab_size == VOCABULARY
    batch = rollouts()
    assert_scores(loaded.score(batch), plain_scores(load_model(tiny_models(name)), batch, 0.5))


def test_an_adapter_folder_is_a_teacher_with_its_adapter(tiny_models, tmp_path):
    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = get_peft_model(load_model(tiny_models("llama")), config)
    adapted.save_pretrained(tmp_path)
    make_tiny_tokenizer().save_pretrained(tmp_path)
    batch = rollouts()
    base, found = (
        Teacher.load(section(folder), make_tiny_tokenizer()).score(batch)
        for folder in (tiny_models("llama"), tmp_path)
    )
    torch.testing.assert_close(found.q, plain_scores(adapted, batch)[0], rtol=0, atol=2e-5)
    assert (found.q - base.q).abs().max() > 0.1


def test_padded_vocabularies_of_different_sizes_are_the_same_tokenizer(tiny_models, tmp_path):
    model = load_model(tiny_models("qwen2"))
    model.resize_token_embeddings(320, mean_resizing=False)
    model.save_pretrained(tmp_path)
    make_tiny_tokenizer().save_pretrained(tmp_path)
    batch = rollouts()
    loaded = Teacher.load(section(tmp_path), make_tiny_tokenizer())
    assert_scores(loaded.score(batch), plain_scores(load_model(tiny_models("qwen2")), batch))


def refusal(folder, tokenizer=None, **more) -> str:
    with pytest.raises(UserError) as raised:
        Teacher.load(section(folder, **more), tokenizer or make_tiny_tokenizer())
    return one_line(raised)


def test_a_missing_folder_is_one_line(tmp_path):
    assert refusal(tmp_path / "none").endswith("no such folder (teacher); check model.teacher_name_or_path")
    assert "assets/nobody: no such folder" in refusal("assets/nobody")
    assert "nobody/at-all: the teacher could not be loaded" in refusal("nobody/at-all")  # a hub name, offline


def test_folders_without_a_model_are_one_line(tiny_models, tmp_path):
    assert f"{tmp_path}: the teacher could not be loaded" in refusal(tmp_path)
    shutil.copytree(tiny_models("llama"), tmp_path / "weightless")
    (tmp_path / "weightless" / "model.safetensors").unlink()
    assert "weightless: no model could be loaded" in refusal(tmp_path / "weightless")
    shutil.copytree(tiny_models("llama"), tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "cut: no model could be loaded" in refusal(tmp_path / "cut")
    (tmp_path / "lost").mkdir()
    (tmp_path / "lost" / "adapter_config.json").write_text('{"base_model_name_or_path": "assets/gone"}')
    assert "assets/gone: no such folder (base model for teacher" in refusal(tmp_path / "lost")
    (tmp_path / "lost" / "adapter_config.json").write_text("{")
    assert "lost/adapter_config.json:1: not valid JSON" in refusal(tmp_path / "lost")


BERT = BertConfig(**SIZES, vocab_size=VOCABULARY, pad_token_id=0)
OTHERS = {
    "T5ForConditionalGeneration": lambda: T5ForConditionalGeneration(
        T5Config(vocab_size=VOCABULARY, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=4)
    ),
    "BartForConditionalGeneration": lambda: BartForConditionalGeneration(
        BartConfig(
            vocab_size=VOCABULARY,
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
        )
    ),
    "BertForMaskedLM": lambda: BertForMaskedLM(BERT),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_models_of_another_kind_are_named(tmp_path, kind):
    OTHERS[kind]().save_pretrained(tmp_path)
    make_tiny_tokenizer().save_pretrained(tmp_path)
    assert f"the teacher must be a causal language model, this is {kind}" in refusal(tmp_path)


def test_a_classifier_would_get_a_random_head(tiny_models, tmp_path):
    LlamaForSequenceClassification.from_pretrained(tiny_models("llama")).save_pretrained(tmp_path)
    make_tiny_tokenizer().save_pretrained(tmp_path)
    assert "this is LlamaForSequenceClassification" in refusal(tmp_path)


def test_a_head_on_a_model_that_reads_ahead_is_refused(tmp_path):
    BertLMHeadModel(BERT).save_pretrained(tmp_path)
    make_tiny_tokenizer().save_pretrained(tmp_path)
    assert refusal(tmp_path).endswith("the teacher must be a causal language model, this one reads ahead")


def test_fewer_embeddings_than_tokens_are_refused(tiny_models, tmp_path):
    model = load_model(tiny_models("llama"))
    model.resize_token_embeddings(VOCABULARY - 1)
    model.save_pretrained(tmp_path)
    make_tiny_tokenizer().save_pretrained(tmp_path)
    assert "the tokenizer has 259 tokens, the model has embeddings for 258" in refusal(tmp_path)


# --------------------------------------------------------------------------------------------- tokenizers


def longer(tokenizer) -> None:
    tokenizer.add_tokens(["revenue"])


def swapped(tokenizer) -> None:
    state = (
        tokenizer.backend_tokenizer.to_str()
        .replace('"A":', '"AB":')
        .replace('"B":', '"A":')
        .replace('"AB":', '"B":')
    )
    tokenizer._tokenizer = type(tokenizer.backend_tokenizer).from_str(state)


def other_end(tokenizer) -> None:
    tokenizer.eos_token = "<unk>"


def other_start(tokenizer) -> None:
    tokenizer.bos_token = "<unk>"


def other_splitting(tokenizer) -> None:
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


DIFFERENCES = {
    longer: "(259 and 260 tokens, 1 of them not the same)",
    swapped: "(259 and 259 tokens, 2 of them not the same)",
    other_end: "(eos_token '<eos>' and '<unk>')",
    other_start: "(bos_token None and '<unk>')",
    other_splitting: "(they split 'Revenue rose",
}


@pytest.mark.parametrize("change", DIFFERENCES, ids=lambda change: change.__name__)
def test_another_tokenizer_is_refused_naming_both(tiny_models, tmp_path, change):
    shutil.copytree(tiny_models("llama"), tmp_path / "teacher")
    other = make_tiny_tokenizer()
    change(other)
    other.save_pretrained(tmp_path / "teacher")
    student = make_tiny_tokenizer()
    student.name_or_path = "some/student"
    message = refusal(tmp_path / "teacher", student)
    assert DIFFERENCES[change] in message
    assert "student some/student and teacher" in message and str(tmp_path / "teacher") in message


def test_padding_tokens_may_differ():
    own, other = make_tiny_tokenizer(), make_tiny_tokenizer()
    other.pad_token = "<eos>"
    check_same_tokenizer(own, other, "teacher")
