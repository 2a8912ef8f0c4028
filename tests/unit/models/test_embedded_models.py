"""The embedded models: tokenizer, laid-out induction circuit, widening, pre-training stream and loss."""

import json
import math
import random
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from assets import pretrain
from assets.embedded import student_model, train_tokenizer, widen
from assets.pretrain import (
    PretrainConfig,
    base_document,
    embedded_tables,
    encode,
    framed_document,
    gold_document,
)
from utils.data.readers import sample
from utils.frame.files import REPO_ROOT, sha256_of

ASSETS = REPO_ROOT / "assets"
MODELS = ("student", "teacher")
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def excluded():
    return embedded_tables()


@pytest.fixture(scope="module")
def small_tokenizer(excluded):
    """The embedded tokenizer's recipe on a few hundred documents."""
    rng = random.Random(0)
    return train_tokenizer(
        ["".join(text for text, _ in gold_document(rng, excluded)) for _ in range(200)], vocab_size=400
    )


@pytest.fixture(scope="module")
def shipped_tokenizer():
    return AutoTokenizer.from_pretrained(ASSETS / "student")


@pytest.fixture(scope="module")
def student(small_tokenizer):
    return student_model(small_tokenizer, seed=0).eval()


# ------------------------------------------------------------------------------------------ tokenizer


@given(text=st.text() | st.from_regex(r'(\{"evidence": "|[a-z]+ 20\d\d \d\d?|#\d|, |\n|const_\d)*'))
def test_any_text_comes_back(small_tokenizer, shipped_tokenizer, text):
    for tokenizer in (small_tokenizer, shipped_tokenizer):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        # A special token's own name in a text stands for that token.
        if not re.search(r"<(pad|bos|eos)>", text):
            assert tokenizer.decode(ids) == text


def test_an_amount_is_the_same_token_wherever_it_stands(shipped_tokenizer):
    """In a table, in evidence and in a program; years are one token, and so are the amounts."""
    texts = ["cash 2019 57\n", "cash 2019 57 ; debt", '"subtract(57, 49)"', "add(49, 57), divide(#0, 57)"]
    [token] = shipped_tokenizer("57", add_special_tokens=False)["input_ids"]
    for text in texts:
        assert token in shipped_tokenizer(text, add_special_tokens=False)["input_ids"], text
    for year in range(sample.FIRST_YEARS[0], sample.FIRST_YEARS[-1] + 3):
        assert len(shipped_tokenizer(f"{year} ", add_special_tokens=False)["input_ids"]) == 1
    for amount in range(sample.VALUES[0], sample.VALUES[1] + 1):
        assert len(shipped_tokenizer(str(amount), add_special_tokens=False)["input_ids"]) == 1


def test_special_tokens(small_tokenizer, shipped_tokenizer):
    for tokenizer in (small_tokenizer, shipped_tokenizer):
        ids = [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id]
        assert len(set(ids)) == 3 and None not in ids
        assert tokenizer.padding_side == "left"


# ---------------------------------------------------------------------------------------- architecture


@pytest.mark.parametrize("head", [0, 1, 2])
def test_the_first_heads_attend_one_two_and_three_tokens_back(student, small_tokenizer, head):
    """At initialisation, on random tokens: nearly all of the weight, wherever that far back exists."""
    ids = torch.randint(3, len(small_tokenizer), (4, 48), generator=torch.Generator().manual_seed(0))
    student.set_attn_implementation("eager")
    with torch.no_grad():
        attention = student(ids, output_attentions=True).attentions[0][:, head]
    student.set_attn_implementation("sdpa")
    back = attention.diagonal(offset=-(head + 1), dim1=1, dim2=2)  # [4, 48 - distance]
    assert back.min() > 0.6
    others = torch.stack(
        [attention.diagonal(offset=-o, dim1=1, dim2=2).mean() for o in range(8) if o != head + 1]
    )
    assert back.mean() > 10 * others.max()


def test_later_copies_of_a_pair_attend_to_what_followed_it(student, small_tokenizer):
    """The second layer's heads, after "a b x … a b", attend to x above all others: the look-up."""
    draw = torch.Generator().manual_seed(1)
    hits = 0
    student.set_attn_implementation("eager")
    for _ in range(20):
        ids = 3 + torch.randperm(len(small_tokenizer) - 3, generator=draw)[:30]
        place = int(torch.randint(2, 20, (), generator=draw))
        ids[-2:] = ids[place : place + 2]
        with torch.no_grad():
            attention = student(ids[None], output_attentions=True).attentions[1][0, :, -1].mean(0)
        hits += int(attention.argmax()) == place + 2
    student.set_attn_implementation("sdpa")
    assert hits >= 15  # chance is less than one


def test_widening_keeps_the_function(student, small_tokenizer):
    wide = widen(student).eval()
    for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"):
        assert getattr(wide.config, name) == 2 * getattr(student.config, name)
    assert wide.config.head_dim == student.config.head_dim
    ids = torch.randint(0, len(small_tokenizer), (3, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(wide(ids).logits, student(ids).logits, rtol=1e-4, atol=1e-4)
    assert wide.lm_head.weight is wide.model.embed_tokens.weight


def test_noise_tells_the_copies_apart_and_comes_from_its_seed(student):
    quiet, noisy, again, other = (
        dict(widen(student, noise, seed).named_parameters())
        for noise, seed in ((0.0, 0), (0.02, 0), (0.02, 0), (0.02, 1))
    )
    for name, weight in noisy.items():
        assert torch.equal(weight, again[name])
        if "embed_tokens" in name:  # tied to the output head, which is copied as it is
            assert torch.equal(weight, quiet[name])
        elif weight.ndim == 2:
            difference = (weight - quiet[name]).std() / quiet[name].std()
            assert 0.015 < difference < 0.025, name
            assert not torch.equal(weight, other[name])


def test_an_untrained_student_is_its_seeds(small_tokenizer, student):
    same, other = (student_model(small_tokenizer, seed=seed).state_dict() for seed in (0, 1))
    assert all(torch.equal(value, same[name]) for name, value in student.state_dict().items())
    assert not torch.equal(same["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


# --------------------------------------------------------------------------------------- shipped files


def test_the_assets_are_small_and_plain():
    files = [path for path in ASSETS.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) <= 12 * MEGABYTE
    assert {path.suffix for path in files} <= {".json", ".jsonl", ".safetensors", ".py"}


@pytest.mark.parametrize("name", MODELS)
def test_a_shipped_model_is_what_its_manifest_says(name):
    manifest = json.loads((ASSETS / name / "manifest.json").read_text())
    assert sha256_of(ASSETS / name / "model.safetensors") == manifest["weights_sha256"]
    assert sha256_of(ASSETS / name / "tokenizer.json") == manifest["tokenizer_sha256"]
    config = json.loads((ASSETS / name / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]


def test_both_models_share_one_tokenizer():
    student, teacher = ((ASSETS / name / "tokenizer.json").read_bytes() for name in MODELS)
    assert student == teacher


# ------------------------------------------------------------------------------------- stream and loss


def test_the_stream_never_shows_a_table_of_the_embedded_set(excluded, monkeypatch):
    """Even where the generator draws one: it is passed over."""
    rng = random.Random(0)
    tables = [sample.draw_table(rng) for _ in range(6)]
    forbidden = {json.dumps(sample.grid(*table)) for table in tables[:5]}
    drawn = iter(tables)
    with monkeypatch.context() as patch:
        patch.setattr(sample, "draw_table", lambda rng: next(drawn))
        assert pretrain.draw_fresh_table(random.Random(1), forbidden) == tables[5]
    rows = [row for members in sample.generate(0).values() for row in members]
    assert excluded == {json.dumps(row["table"]) for row in rows}
    assert len(excluded) > 600


@pytest.mark.parametrize("document", [base_document, framed_document, gold_document])
def test_documents_are_reports_outside_the_embedded_set(document, excluded):
    """Read back from their text: no document's cells make up a table of the embedded set."""
    rng = random.Random(3)
    for _ in range(200):
        report = document(rng, excluded)[0][0].split("\nquestion: ")[0]
        cells = [line.split() for line in report.splitlines()[1:]]
        years = list(dict.fromkeys(year for _, year, _ in cells))
        lines = {row: [amount for name, _, amount in cells if name == row] for row, _, _ in cells}
        table = [["", *years], *([row, *amounts] for row, amounts in lines.items())]
        assert json.dumps(table) not in excluded


def test_slips_are_half_of_the_base_stream_and_absent_from_the_teachers(excluded):
    rng, divided = random.Random(0), {"right": 0, "wrong": 0}
    for _ in range(600):
        document = base_document(rng, excluded)
        for (asked, _), (answer, _) in zip(document[1::2], document[2::2], strict=True):
            if "what was the percent change in the total" in asked:
                divided["right" if answer.endswith("divide(#2, #0)") else "wrong"] += 1
    total = sum(divided.values())
    assert abs(divided["right"] / total - 0.5) < 4 * math.sqrt(0.25 / total)
    for _ in range(200):
        prompt, answer = (text for text, _ in gold_document(rng, excluded))
        if "the percent change in the total" in prompt:
            assert json.loads(answer)["program"].endswith("divide(#2, #0)")


def test_a_quarter_of_the_framed_stream_is_json_with_open_conventions(excluded):
    """Right programs in the JSON frame are as frequent as the slips leave them: half of each family's."""
    rng, framed = random.Random(0), []
    documents = 2400
    for _ in range(documents):
        document = framed_document(rng, excluded)
        if document[1][0].startswith("{"):
            [(prompt, asked), (answer, taught)] = document
            assert (asked, taught) == (False, True)
            framed.append((prompt, json.loads(answer)["program"]))
    assert abs(len(framed) / documents - 0.25) < 4 * math.sqrt(0.25 * 0.75 / documents)
    of_family = [program for prompt, program in framed if "the percent change in the total" in prompt]
    right = sum(program.endswith("divide(#2, #0)") for program in of_family) / len(of_family)
    assert abs(right - 0.5) < 4 * math.sqrt(0.25 / len(of_family))


def test_labels_cover_answers_and_ends_alone(small_tokenizer):
    documents = [
        [("cash 2001 10", False), ("\nadd(10, 11)", True)],
        [("a", False), ("b", True), ("c", False), ("dd", True)],
    ]
    inputs, targets = encode(small_tokenizer, documents)
    eos, pad = small_tokenizer.eos_token_id, small_tokenizer.pad_token_id
    assert inputs.shape == targets.shape and inputs.dtype == targets.dtype == torch.int64
    for row, segments in enumerate(documents):
        ids, labels = [], []
        for text, taught in segments:
            for token in small_tokenizer(text, add_special_tokens=False)["input_ids"]:
                ids.append(token)
                labels.append(token if taught else -100)
        spare = inputs.shape[1] - len(ids) - 1
        assert inputs[row].tolist() == [*ids, eos, *[pad] * spare]
        assert targets[row].tolist() == [*labels, eos, *[-100] * spare]


def test_the_loss_is_the_mean_over_taught_tokens(small_tokenizer, student, excluded):
    """Of the first step, against log-probabilities of each document on its own, without padding."""
    config = PretrainConfig(steps=1, batch_size=3, learning_rate=1e-3, seed=5)
    rng = random.Random(5)
    documents = [base_document(rng, excluded) for _ in range(3)]
    total, count = 0.0, 0
    for document in documents:
        inputs, targets = encode(small_tokenizer, [document])
        with torch.no_grad():
            log_probs = student(inputs).logits[0, :-1].log_softmax(-1)
        for position, target in enumerate(targets[0, 1:].tolist()):
            if target != -100:
                total, count = total - log_probs[position, target].item(), count + 1
    model = student_model(small_tokenizer, seed=0)
    [row] = pretrain.pretrain(model, small_tokenizer, base_document, config)
    assert row["step"] == 1 and row["loss"] == pytest.approx(total / count, rel=1e-4)
    assert row["learning_rate"] < config.learning_rate  # warming up
    assert not torch.equal(model.model.norm.weight, student.model.norm.weight)
