"""Architectures read from configurations alone, and the model configurations that are shipped."""

import json
import re
import runpy
import sys

import pytest
import torch
from transformers import BartConfig, BertConfig, GPT2Config, LlamaConfig, MixtralConfig, Qwen2Config

from tests.support.stand_ins import KINDS, make_stand_in
from utils.frame.config import load_tier, read_yaml
from utils.frame.files import REPO_ROOT, UserError
from utils.frame.stage_plan import load_script
from utils.models.inspection.architecture import inspect_model
from utils.models.inspection.device_at_hand import cost_here, device_at_hand
from utils.models.inspection.model_config import KNOWN, config_text
from utils.models.inspection.resources import Hardware, estimate
from utils.models.loading import add_lora, load_policy, load_tokenizer
from utils.models.settings import ModelConfig

LLAMA_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def sizes(hidden, ffn, layers, heads, key_heads, vocabulary, tied, positions):
    return {
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        "max_position_embeddings": positions,
    }


LLAMA_8B = sizes(4096, 14336, 32, 32, 8, 128256, False, 8192)
# The sizes in the models' own config.json, and the numbers of weights that the hub counts in their files.
REAL = {
    "qwen2.5-0.5b": (Qwen2Config, sizes(896, 4864, 24, 14, 2, 151936, True, 32768), 494_032_768),
    "qwen2.5-1.5b": (Qwen2Config, sizes(1536, 8960, 28, 12, 2, 151936, True, 32768), 1_543_714_304),
    "qwen2.5-3b": (Qwen2Config, sizes(2048, 11008, 36, 16, 2, 151936, True, 32768), 3_085_938_688),
    "qwen2.5-7b": (Qwen2Config, sizes(3584, 18944, 28, 28, 4, 152064, False, 32768), 7_615_616_512),
    "qwen2.5-32b": (Qwen2Config, sizes(5120, 27648, 64, 40, 8, 152064, False, 32768), 32_763_876_352),
    "qwen2.5-math-7b": (Qwen2Config, sizes(3584, 18944, 28, 28, 4, 152064, False, 4096), 7_615_616_512),
    "llama-3.2-1b": (LlamaConfig, sizes(2048, 8192, 16, 32, 8, 128256, True, 131072), 1_235_814_400),
    "llama-3.2-3b": (LlamaConfig, sizes(3072, 8192, 28, 24, 8, 128256, True, 131072), 3_212_749_824),
    "llama-3-8b": (LlamaConfig, LLAMA_8B, 8_030_261_248),
    "tinyllama-1.1b": (LlamaConfig, sizes(2048, 5632, 22, 32, 4, 32000, False, 2048), 1_100_048_384),
    "dialogpt-medium": (GPT2Config, {"n_embd": 1024, "n_layer": 24, "n_head": 16}, 354_823_168),
}
REAL["llama-3.2-1b-ultrafast"] = REAL["llama-3.2-1b-instruct"] = REAL["llama-3.2-1b"]
REAL["llama-3.2-3b-instruct"] = REAL["llama-3.2-3b"]
REAL["llama-3.1-8b-instruct"] = (LlamaConfig, LLAMA_8B | {"max_position_embeddings": 131072}, 8_030_261_248)
STAND_IN = {"qwen": "qwen2", "llama": "llama3", "tinyl": "llama2", "dialo": "gpt2"}


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stand_ins")
    return {kind: make_stand_in(kind, folder / kind) for kind in KINDS}


def saved(folder, config):
    config.save_pretrained(folder)
    return folder


def shipped(stem):
    return load_tier(ModelConfig, REPO_ROOT / "configs" / "models" / f"{stem}.yaml")


def test_every_known_model_is_here():
    assert set(REAL) == set(KNOWN)


@pytest.mark.parametrize("stem", REAL)
def test_shipped_configurations_are_those_of_the_real_architecture(tmp_path, stem, stand_ins):
    kind, settings, parameters = REAL[stem]
    found = inspect_model(saved(tmp_path, kind(**settings)))
    assert found.parameters == parameters
    assert found.unshared is None and found.untargeted == 0
    config = shipped(stem)
    assert config.metadata.parameters == parameters
    assert config.model.max_prompt_length + config.generation.max_new_tokens <= found.positions
    assert config.lora.target_modules == list(found.targets)
    assert config.lora.r == (8 if "ultrafast" in stem else 32 if "0.5b" in stem else 16)
    expected = estimate(found, config.lora.r)
    assert (config.metadata.hardware, config.metadata.memory_gb, config.metadata.hours) == (
        expected.hardware.name,
        expected.memory_gb,
        expected.hours,
    )
    assert config.model.load_in_4bit == expected.load_in_4bit
    # The targets exist in a model of the architecture, every one of them, and nothing else is adapted.
    small = stand_ins[next(value for key, value in STAND_IN.items() if stem.startswith(key))]
    policy, _ = load_policy(small, config.model, trainable=True)
    adapted = {
        name.split(".lora_A")[0].rsplit(".", 1)[-1]
        for name, parameter in add_lora(policy, config.lora, 0).named_parameters()
        if parameter.requires_grad and "lora_A" in name
    }
    assert adapted == set(config.lora.target_modules)


@pytest.mark.parametrize(
    ("kind", "names"), [("llama3", LLAMA_LAYERS), ("gpt2", ["c_attn", "c_proj", "c_fc"])]
)
def test_lora_parameters_are_those_that_peft_makes(stand_ins, kind, names):
    found = inspect_model(stand_ins[kind])
    assert list(found.targets) == names
    policy, _ = load_policy(stand_ins[kind], ModelConfig().model, trainable=True)
    settings = ModelConfig().lora
    settings.r, settings.target_modules = 3, names
    adapted = add_lora(policy, settings, 0)
    assert found.lora_parameters(3) == sum(
        each.numel() for each in adapted.parameters() if each.requires_grad
    )


def test_routers_and_fused_experts_are_left_out_and_counted(tmp_path):
    config = MixtralConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        vocab_size=64,
    )
    found = inspect_model(saved(tmp_path, config))
    assert list(found.targets) == ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert found.untargeted == 2 * 4 * 3 * 32 * 48  # three matrices of each expert


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (BertConfig(architectures=["BertForMaskedLM"]), "no causal language model but BertForMaskedLM"),
        (BartConfig(architectures=["BartForConditionalGeneration"]), "no causal language model"),
        (LlamaConfig().to_dict() | {"num_hidden_layers": 0}, "describes no transformer"),
        (LlamaConfig().to_dict() | {"hidden_size": 30, "num_attention_heads": 7}, "30.* is not a multiple"),
        (LlamaConfig().to_dict() | {"vocab_size": "many"}, "no model configuration found|describes no model"),
    ],
)
def test_nonsense_is_refused(tmp_path, config, message):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config if isinstance(config, dict) else config.to_dict()))
    with pytest.raises(UserError, match=message) as raised:
        inspect_model(tmp_path)
    assert "\n" not in str(raised.value)


def test_no_configuration_is_one_line(tmp_path):
    for text in (None, "{}", '{"model_type": "nothing"}', "not json"):
        if text is not None:
            (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match="no model configuration found") as raised:
            inspect_model(tmp_path)
        assert "\n" not in str(raised.value)


def test_the_device_at_hand_is_what_the_estimate_speaks_of(stand_ins):
    """Of two CPUs the slower one takes longer, and one with less memory than weights does not do."""
    found = inspect_model(stand_ins["gpt2"])
    fast = cost_here(found, 8, Hardware("CPU, 2 threads", 16, 1e11, 2e10), False, False)
    slow = cost_here(found, 8, Hardware("CPU, 2 threads", 16, 1e6, 2e10), False, False)
    small = cost_here(found, 8, Hardware("CPU, 2 threads", 0.5, 1e11, 2e10), False, False)
    assert fast.startswith("on this machine (CPU, 2 threads, 16 GB, 0.1 TFLOP/s measured): sampling 1")
    assert fast.endswith("; fits") and small.endswith("; does not fit as it is")
    hours = [float(re.search(r"03_sft ([0-9.e+-]+) h", line)[1]) for line in (fast, slow)]
    assert hours[0] < hours[1]
    here = device_at_hand()
    assert here.memory > 0.1 and here.speed > 1e8 and here.bandwidth > 1e7


def run_script(monkeypatch, capsys, *argv):
    monkeypatch.setattr(sys, "argv", ["inspect_model_architecture.py", *map(str, argv)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(REPO_ROOT / "inspect_model_architecture.py"), run_name="__main__")
    return ended.value.code, capsys.readouterr()


def test_the_script_writes_a_configuration_that_loads(stand_ins, tmp_path, monkeypatch, capsys):
    out = tmp_path / "made.yaml"
    code, said = run_script(monkeypatch, capsys, "--model", stand_ins["gpt2"], "--out", out)
    assert code == 0 and "LoRA on c_attn (2), c_proj (4), c_fc (2)" in said.out
    assert "on this machine (" in said.out and "TFLOP/s measured): sampling " in said.out
    config = load_tier(ModelConfig, out)
    assert config.lora.target_modules == ["c_attn", "c_proj", "c_fc"]
    assert config.model.max_prompt_length + config.generation.max_new_tokens <= 1024
    out.write_text("kept")
    assert run_script(monkeypatch, capsys, "--model", stand_ins["gpt2"], "--out", out)[0] == 0
    assert out.read_text() == "kept"
    assert run_script(monkeypatch, capsys, "--model", stand_ins["gpt2"], "--out", out, "--overwrite")[0] == 0
    assert read_yaml(out)["metadata"]["parameters"] == inspect_model(stand_ins["gpt2"]).parameters
    (tmp_path / "empty").mkdir()
    code, said = run_script(monkeypatch, capsys, "--model", tmp_path / "empty")
    assert code == 2 and said.err.startswith("error: ") and said.err.count("\n") == 1


@pytest.mark.slow
def test_all_writes_what_is_shipped(tmp_path, monkeypatch, capsys):
    """Byte for byte, from the real models' sizes."""
    from utils.models.inspection import architecture, model_config

    by_name = {KNOWN[stem].name: real for stem, real in REAL.items()}

    def real(name):
        kind, settings, _ = by_name[name]
        return saved(tmp_path / name.replace("/", "--"), kind(**settings))

    monkeypatch.setattr(architecture, "located", real)
    monkeypatch.setattr(model_config, "FOLDER", tmp_path)
    code, _ = run_script(monkeypatch, capsys, "--all")
    assert code == 0
    for stem in KNOWN:
        ours = (REPO_ROOT / "configs" / "models" / f"{stem}.yaml").read_text()
        assert (tmp_path / f"{stem}.yaml").read_text() == ours, stem


def test_a_model_too_large_for_every_card_is_still_estimated(tmp_path):
    found = inspect_model(saved(tmp_path, LlamaConfig(**sizes(8192, 28672, 320, 64, 8, 128256, False, 8192))))
    expected = estimate(found, 16)
    assert expected.load_in_4bit and expected.gradient_checkpointing
    assert expected.memory_gb["sampling"] > expected.hardware.memory
    assert "load_in_4bit: true" in config_text(found)


@pytest.mark.parametrize("kind", KINDS)
def test_stand_ins_are_like_the_models_they_stand_for(stand_ins, kind):
    tokenizer = load_tokenizer(stand_ins[kind])
    text = "What was 2,019's net revenue?  naïve – 東京 🙂\n\n#### 12345"
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    opens = kind in ("llama3", "llama2")
    assert (tokenizer(text)["input_ids"][0] == tokenizer.bos_token_id) == opens
    assert (tokenizer.chat_template is None) == (kind == "gpt2")
    assert (inspect_model(stand_ins[kind]).vocabulary > len(tokenizer)) == (kind == "qwen2")
    assert sum(path.stat().st_size for path in stand_ins[kind].iterdir()) < 1_000_000


def test_stand_ins_share_a_tokenizer_and_not_their_weights(tmp_path, stand_ins):
    other = make_stand_in("qwen2", tmp_path, seed=1)
    assert (other / "tokenizer.json").read_bytes() == (stand_ins["qwen2"] / "tokenizer.json").read_bytes()
    first, second = (load_policy(path, ModelConfig().model)[0] for path in (stand_ins["qwen2"], other))
    assert not torch.equal(first.get_input_embeddings().weight, second.get_input_embeddings().weight)


def test_all_reads_the_shipped_files_where_the_hub_cannot_be_asked(capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert load_script("inspect_model_architecture.py").main(["--all"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("Qwen2.5-0.5B-Instruct: 494,032,768 parameters" in line for line in lines)


def test_no_config_prints_and_writes_nothing(tmp_path, capsys):
    out = tmp_path / "x.yaml"
    assert (
        load_script("inspect_model_architecture.py").main(
            ["--model", "assets/student", "--no_config", "--out", str(out)]
        )
        == 0
    )
    assert "963,968 parameters" in capsys.readouterr().out and not out.exists()
