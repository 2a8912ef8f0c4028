"""Number formats and attention by device, four bits, and where a teacher lies."""

import pytest
import torch

from tests.support.stand_ins import make_stand_in
from tests.support.tiny_models import make_tiny_tokenizer
from utils.frame.files import UserError
from utils.models import loading
from utils.models.loading import attention, input_device, load_base, load_tokenizer, number_format
from utils.models.prefix.shared_prefix import CompletionBatch
from utils.models.settings import LoraSection, ModelConfig, ModelSection
from utils.models.teacher import Teacher
from utils.training.memory import precision


@pytest.fixture
def gpu(monkeypatch):
    """Let the device be a GPU, with or without bfloat16."""

    def have(bfloat16: bool) -> None:
        monkeypatch.setattr(loading, "device", lambda: torch.device("cuda"))
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bfloat16)

    return have


def test_auto_is_what_the_device_has(gpu, monkeypatch):
    monkeypatch.setattr(loading, "device", lambda: torch.device("cpu"))
    assert number_format(ModelSection()) == torch.float32
    assert number_format(ModelSection(torch_dtype="bfloat16")) == torch.bfloat16
    gpu(True)
    assert number_format(ModelSection()) == torch.bfloat16
    gpu(False)
    assert number_format(ModelSection()) == torch.float16
    assert number_format(ModelSection(torch_dtype="float32")) == torch.float32


def test_training_arguments_follow_the_number_format(gpu):
    gpu(True)
    assert precision(ModelConfig()) == {"bf16": True, "fp16": False}
    gpu(False)
    assert precision(ModelConfig()) == {"bf16": False, "fp16": True}
    with pytest.raises(UserError, match="weights in float16 cannot be trained: set lora.enabled"):
        precision(ModelConfig(lora=LoraSection(enabled=False)))


def test_flash_attention_gives_way_where_it_cannot_run(gpu, monkeypatch, caplog):
    flash = ModelSection(attn_implementation="flash_attention_2")
    assert (
        attention(ModelSection()) is None and attention(ModelSection(attn_implementation="eager")) == "eager"
    )
    monkeypatch.setattr(loading, "device", lambda: torch.device("cpu"))
    assert attention(flash) == "sdpa"
    gpu(True)
    monkeypatch.setattr(loading, "is_flash_attn_2_available", lambda: False)
    assert attention(flash) == "sdpa"
    monkeypatch.setattr(loading, "is_flash_attn_2_available", lambda: True)
    assert attention(ModelSection(attn_implementation="flash_attention_2", torch_dtype="float32")) == "sdpa"
    reasons = [record.getMessage().split(": ", 1)[1] for record in caplog.records]
    assert reasons == [
        "it needs a GPU",
        "the package flash-attn is not installed",
        "it computes in bfloat16 or float16",
    ]
    caplog.clear()
    assert attention(flash) == "flash_attention_2" and not caplog.records


def test_auto_attention_shares_prefixes(tiny_models):
    for kind in ("llama", "gpt2"):
        assert load_base(tiny_models(kind), ModelSection()).config._attn_implementation == "sdpa"


# ------------------------------------------------------------------------------------------------ the teacher


BATCH = CompletionBatch.of(
    [[5, 6, 7]] * 3 + [[9, 8]], [[10, 11], [12, 13, 14], [15], [16, 17]], torch.device("cpu")
)
SPLIT = {
    "model.embed_tokens": "cpu",
    "model.rotary_emb": "cpu",
    "model.layers.0": "disk",
    "model.layers.1": "cpu",
    "model.norm": "cpu",
    "lm_head": "cpu",
}


def scores(model):
    teacher = Teacher(model, len(make_tiny_tokenizer()))
    found = teacher.score(BATCH)
    return found.q, found.v, teacher.identity


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}, SPLIT], ids=["auto", "one device", "disk"])
def test_a_teacher_elsewhere_scores_the_same(tiny_models, device_map, caplog):
    q, v, identity = scores(load_base(tiny_models("llama"), ModelSection()))
    spread = load_base(tiny_models("llama"), ModelSection(), device_map=device_map)
    assert input_device(spread) == torch.device("cpu")
    if device_map is SPLIT:
        assert any(parameter.is_meta for parameter in spread.parameters())
    found = scores(spread)
    assert torch.equal(found[0], q) and torch.equal(found[1], v) and found[2] == identity
    assert "without shared prefixes" not in caplog.text


def test_what_a_spread_model_computes_returns_to_its_inputs(tiny_models):
    """Backbone and head are called one by one: each must fetch its input, and bring its output back."""
    model = load_base(tiny_models("llama"), ModelSection(), device_map=SPLIT)
    for module in (model.base_model, model.get_output_embeddings()):
        assert module._hf_hook.io_same_device
        assert "past_key_values" in (module._hf_hook.skip_keys or [])


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    return make_stand_in("llama3", tmp_path_factory.mktemp("llama3"))


def teacher_of(folder, **settings):
    return Teacher.load(ModelSection(teacher_name_or_path=str(folder), **settings), load_tokenizer(folder))


def test_a_teacher_in_four_bits_scores_nearly_the_same_in_less_memory(stand_in):
    whole, small = teacher_of(stand_in), teacher_of(stand_in, teacher_load_in_4bit=True)
    q, rounded = whole.score(BATCH).q, small.score(BATCH).q
    difference = (q - rounded).abs()[BATCH.completion_mask.bool()]
    assert 0 < difference.mean() < 0.3 * q.abs()[BATCH.completion_mask.bool()].mean()
    assert small.identity != whole.identity
    assert small.model.get_memory_footprint() < whole.model.get_memory_footprint()
    # The policy's own setting is not the teacher's, nor the other way round.
    assert teacher_of(stand_in, load_in_4bit=True).identity == whole.identity
    placed = teacher_of(stand_in, teacher_load_in_4bit=True, teacher_device_map="cpu")
    assert torch.equal(placed.score(BATCH).q, rounded)


def test_a_device_that_is_not_there_is_one_line(stand_in):
    for wanted in ("cuda:91", "nowhere"):
        with pytest.raises(UserError, match=f"model.teacher_device_map is '{wanted}'") as raised:
            teacher_of(stand_in, teacher_device_map=wanted)
        assert "\n" not in str(raised.value)
