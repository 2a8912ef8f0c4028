"""Number formats and attention by device, four bits, damaged folders, and where a teacher lies."""

import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from tests.support.stand_ins import make_stand_in
from tests.support.tiny_models import make_tiny_tokenizer
from utils.frame.files import UserError, read_json, write_json
from utils.models import loading
from utils.models.loading import (
    attention,
    input_device,
    load_base,
    load_policy,
    load_tokenizer,
    number_format,
    save_policy,
)
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


# ------------------------------------------------------------------------------- damaged and made-up folders


def configured(**values):
    def change(folder):
        write_json(folder / "config.json", read_json(folder / "config.json") | values)

    return change


def cut(name, size):
    def change(folder):
        (folder / name).write_bytes((folder / name).read_bytes()[:size])

    return change


def without_a_weight(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def with_code(folder):
    """Code of the folder's own, which would leave a file behind."""
    (folder / "own.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    configured(model_type="own", auto_map={"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"})(folder)
    known = read_json(folder / "tokenizer_config.json")
    write_json(folder / "tokenizer_config.json", known | {"auto_map": {"AutoTokenizer": ["own.T", None]}})


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut("model.safetensors", 5), "no model could be loaded"),
        (cut("model.safetensors", 9000), "no model could be loaded"),
        (cut("config.json", 40), "could be loaded"),
        (cut("tokenizer_config.json", 40), "no tokenizer could be loaded"),
        (configured(hidden_size="x"), "expected int, got str"),
        (configured(hidden_act="none"), "no model could be loaded"),
        (configured(quantization_config=3), "no tokenizer could be loaded"),
        (without_a_weight, "1 of the model's weights are missing, such as model.norm.weight"),
        (with_code, "custom code"),
    ],
)
def test_a_damaged_folder_is_one_line_and_none_of_its_code_runs(
    tiny_models, tmp_path, damage, said, monkeypatch
):
    folder = tmp_path / "model"
    shutil.copytree(tiny_models("llama"), folder)
    damage(folder)
    monkeypatch.setattr("builtins.input", lambda *asked: "y")
    with pytest.raises(UserError, match=said) as raised:
        load_policy(folder, ModelSection())
    assert str(raised.value).startswith(str(folder)) and "\n" not in str(raised.value)
    assert not (folder / "ran").exists()


def without_a_matrix(folder):
    weights = load_file(folder / "adapter_model.safetensors")
    del weights[sorted(weights)[0]]
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut("adapter_model.safetensors", 90), "no adapter could be loaded"),
        (without_a_matrix, "no adapter could be loaded .*missing adapter keys"),
        (lambda folder: write_json(folder / "adapter_config.json", []), "base_model_name_or_path"),
        (
            lambda folder: write_json(folder / "adapter_config.json", {"base_model_name_or_path": 3}),
            "base_model",
        ),
    ],
)
def test_a_damaged_adapter_is_one_line(tiny_models, tmp_path, damage, said):
    base = load_base(tiny_models("llama"), ModelSection())
    policy = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    save_policy(policy, load_tokenizer(tiny_models("llama")), tmp_path / "policy")
    load_policy(tmp_path / "policy", ModelSection())
    damage(tmp_path / "policy")
    with pytest.raises(UserError, match=said) as raised:
        load_policy(tmp_path / "policy", ModelSection())
    assert "\n" not in str(raised.value)


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
