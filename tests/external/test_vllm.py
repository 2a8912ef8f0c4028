"""vLLM as the sampler, through TRL's own code with a stand-in for vLLM below it (`vllm_stub.py`)."""

import ast
import importlib.util
import itertools
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from tests.support import vllm_stub
from tests.support.group_stub import group_trainer, rollout_inputs
from tests.support.ppo_stub import ppo_trainer, tiny_model
from tests.support.stand_ins import make_padded_stand_in
from tests.support.training_stages import stage_context, stage_inputs
from utils.data.records import load_records
from utils.evaluation.answers import answer_records
from utils.frame.config import load_tier
from utils.frame.files import UserError
from utils.methods.distill.build import build_distill_trainer
from utils.methods.distill.settings import DistillAlgo
from utils.methods.grpo.settings import GrpoAlgo
from utils.methods.grpo.trainer import SharedPrefixGRPOTrainer, build_grpo_trainer
from utils.methods.ppo.build import build_ppo_trainer
from utils.methods.ppo.settings import PpoAlgo
from utils.methods.rloo.settings import RlooAlgo
from utils.methods.rloo.trainer import build_rloo_trainer
from utils.models.loading import load_policy
from utils.models.sampling import complete
from utils.models.settings import ModelConfig, ModelSection, VllmSection
from utils.models.vllm import sampler as vllm_sampling
from utils.models.vllm.sampler import announce_sampler, vllm_arguments, vllm_completer
from utils.models.vllm.weights import merged_weights
from utils.rewards.spec import RewardSpec, load_reward_spec
from utils.rollouts.candidates import sample_candidates
from utils.rollouts.sampler_correction import importance_weights

RATES = {"learning_rate": 2e-2, "warmup_steps": 0, "num_rollouts": 2}
GROUP = RATES | {
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "steps_per_generation": 1,
    "num_iterations": 1,
}
TRAINERS = {
    "03": (build_distill_trainer, DistillAlgo(**GROUP, num_generations=2, on_policy_fraction=0.5)),
    "05": (
        build_ppo_trainer,
        PpoAlgo(**RATES, rollout_batch_size=8, num_generations=4, num_ppo_epochs=1, num_mini_batches=1),
    ),
    "06": (build_grpo_trainer, GrpoAlgo(**GROUP, num_generations=4, beta=0.05)),
    "07": (build_rloo_trainer, RlooAlgo(**GROUP, num_samples=4)),
}


@pytest.fixture(scope="module")
def inputs(tiny_models, tmp_path_factory):
    return stage_inputs(tmp_path_factory.mktemp("inputs"), tiny_models("llama"))


@pytest.fixture
def context(inputs, tiny_models, tmp_path):
    """A stage's context on a tiny LoRA policy, vLLM asked for."""

    def make(number="06", **settings):
        algo = TRAINERS[number][1]
        ctx = stage_context(tmp_path, inputs, tiny_models("llama"), algo, start="sft", curriculum="random")
        ctx.config.model.vllm = VllmSection(use_vllm=True, **settings)
        return ctx

    return make


@pytest.fixture
def served(monkeypatch, tiny_models):
    """A server of the tiny model, and its address."""
    pytest.importorskip("requests", reason="TRL's client of a vLLM server needs the package requests")
    vllm_stub.install(monkeypatch)
    server, address, http = vllm_stub.serve(monkeypatch, str(tiny_models("llama")))
    yield server, address
    http.shutdown()


def build(number, ctx):
    """The trainer of a stage."""
    spec = load_reward_spec(ctx.inputs["reward_spec"])
    return TRAINERS[number][0](ctx, load_records(ctx.inputs["train"]), spec)[0]


def merged(model: PeftModel) -> dict[str, torch.Tensor]:
    """The policy's weights as one model: W + alpha / r * B A, written out."""
    found = {}
    for name, module in model.base_model.model.named_modules():
        if hasattr(module, "lora_A"):
            low_rank = module.lora_B["default"].weight @ module.lora_A["default"].weight
            found[f"{name}.weight"] = module.base_layer.weight + module.scaling["default"] * low_rank
    return {name: weight.detach().clone() for name, weight in found.items()}


# ------------------------------------------------------------------------------------------------ training


@pytest.mark.parametrize(("number", "sleeps"), [("03", False), ("05", False), ("06", True), ("07", False)])
def test_trainers_sample_with_vllm_from_the_weights_of_the_step(context, monkeypatch, number, sleeps):
    engine = vllm_stub.install(monkeypatch)
    trainer = build(number, context(number, gpu_memory_utilization=0.4, enable_sleep_mode=sleeps))
    (llm,) = engine.started
    assert llm.max_model_len == 200 + 8  # max_prompt_length + max_new_tokens
    assert llm.settings["gpu_memory_utilization"] == 0.4
    base = {
        name: value.detach().clone()
        for name, value in trainer.model.named_parameters()
        if "base_layer" in name
    }
    start, seen = merged(trainer.model), []
    generate = llm.generate

    def watched(*args, **kwargs):
        held = dict(llm.model.named_parameters())
        for name, weight in merged(trainer.model).items():
            torch.testing.assert_close(held[name].detach(), weight, rtol=0, atol=1e-6)
        seen.append(trainer.state.global_step)
        return generate(*args, **kwargs)

    monkeypatch.setattr(llm, "generate", watched)
    trainer.train()
    assert seen == [0, 1]
    moved = [(merged(trainer.model)[name] - weight).abs().max() for name, weight in start.items()]
    assert max(moved) > 1e-3  # the second rollout came from other weights than the first
    for name, value in trainer.model.named_parameters():
        assert name not in base or torch.equal(value, base[name])  # merging in place would round it


def test_a_server_gets_prompts_once_and_the_merged_weights(context, served):
    server, address = served
    trainer = build("05", context("05", mode="server", server_base_url=address))
    trainer.train()
    assert len(server.requests) == 2
    for request in server.requests:
        assert request["n"] == 4 and request["logprobs"] == 0
        assert request["max_tokens"] == 8 and request["temperature"] == 1.0
        assert len(request["prompt"]) == 2 and request["prompt"][0] != request["prompt"][1]
    assert server.sent == server.announced == list(dict(server.llm.model.named_parameters()))
    # vLLM's probabilities are the policy's: what the server got was merged.
    logged = trainer.state.log_history[-1]
    assert logged["sampling/sampling_logp_difference/max"] < 1e-4


@pytest.mark.parametrize("number", sorted(TRAINERS))
def test_only_the_configs_that_know_it_get_the_correction(context, monkeypatch, number):
    vllm_stub.install(monkeypatch)
    trainer = build(
        number, context(number, importance_sampling_mode="token_mask", importance_sampling_clip_max=2.5)
    )
    if number in ("05", "06"):
        assert trainer.vllm_importance_sampling_correction
        assert trainer.vllm_importance_sampling_mode == "token_mask"
        assert trainer.vllm_importance_sampling_clip_max == 2.5
    else:
        assert not hasattr(trainer.args, "vllm_importance_sampling_correction")


# ---------------------------------------------------------------------------------- importance correction

MODES = ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]


@pytest.mark.parametrize("mode", MODES)
def test_the_weights_are_those_of_trls_grpo(tiny_models, tmp_path, monkeypatch, mode):
    vllm_stub.install(monkeypatch, sharpness=1.1, unscored=True)
    trainer = group_trainer(
        SharedPrefixGRPOTrainer,
        tiny_models("llama"),
        tmp_path,
        use_vllm=True,
        vllm_importance_sampling_mode=mode,
        vllm_importance_sampling_clip_min=0.8,
        vllm_importance_sampling_clip_max=1.2,
    )
    del trainer._generate_single_turn  # the made-up completions
    rollout = trainer._generate_and_score_completions(rollout_inputs())
    log_ratio = rollout["old_per_token_logps"] - rollout["sampling_per_token_logps"]
    found = importance_weights(log_ratio, rollout["completion_mask"], mode, 0.8, 1.2)
    expected = rollout["importance_sampling_ratio"]
    assert expected.shape[1] == (1 if mode.startswith("sequence") else log_ratio.shape[1])
    assert torch.equal(found, expected)
    bounded = (expected == 0) if mode.endswith("mask") else (expected == 0.8) | (expected == 1.2)
    assert bounded.any() and not bounded.all()
    assert log_ratio.isnan().any()


def test_weighted_means_over_vllms_samples_are_means_over_the_policys():
    """All completions of two tokens of three, summed with vLLM's probabilities."""
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(2, 3, generator=generator).double().log_softmax(-1) for _ in range(2))
    pairs = list(itertools.product(range(3), repeat=2))
    pi = torch.stack([torch.stack([first[0, a], second[0, b]]) for a, b in pairs])
    mu = torch.stack([torch.stack([first[1, a], second[1, b]]) for a, b in pairs])
    worth = torch.randn(9, generator=generator).double()
    weights = importance_weights(pi - mu, torch.ones(9, 2), "sequence_truncate").squeeze(1)
    expected = (pi.sum(1).exp() * worth).sum()
    torch.testing.assert_close((mu.sum(1).exp() * weights * worth).sum(), expected)
    assert abs((mu.sum(1).exp() * worth).sum() - expected) > 0.01  # and without weights they are not


def slow_log_probs(model, prompt, completion, sharpness, temperature):
    """Log-probabilities of a completion's tokens by one plain pass."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].double()
    return (sharpness * logits / temperature).log_softmax(-1)[range(len(completion)), completion]


@pytest.mark.parametrize("mode", ["token_truncate", "sequence_mask"])
@pytest.mark.parametrize("separate", [False, True])
def test_ppo_weighs_its_policy_loss(tiny_models, tmp_path, monkeypatch, mode, separate):
    vllm_stub.install(monkeypatch, sharpness=1.15)
    trainer = ppo_trainer(
        tiny_models("llama"),
        tmp_path,
        lora=True,
        separate=separate,
        use_vllm=True,
        vllm_importance_sampling_mode=mode,
        vllm_importance_sampling_clip_max=1.25,
    )
    trainer.model.train()
    rows = [dict(trainer.train_dataset[row]) for row in [0] * 4 + [1] * 4]
    rollout = trainer._generate_and_score_completions(rows)
    mask = rollout["completion_mask"].bool()
    total, tokens, weights_seen = 0.0, int(mask.sum()), []
    for row in range(len(rows)):
        prompt = rollout["prompt_ids"][row][rollout["prompt_mask"][row].bool()].tolist()
        completion = rollout["completion_ids"][row][mask[row]].tolist()
        pi, mu = (
            slow_log_probs(trainer.model, prompt, completion, sharpness, 0.9) for sharpness in (1, 1.15)
        )
        if mode == "token_truncate":
            weights = (pi - mu).exp().clamp(max=1.25)
        else:
            ratio = (pi - mu).sum().exp()
            weights = torch.full_like(pi, ratio if ratio <= 1.25 else 0.0)
        weights_seen += weights.tolist()
        advantages = rollout["advantages"][row][mask[row]].double()
        errors = (rollout["returns"] - rollout["old_values"])[row][mask[row]].double()
        # The first update: the policy's ratio is 1, and the values are the old ones.
        total += (-weights * advantages + trainer.args.vf_coef * 0.5 * errors.square()).sum()
    inputs = rollout | {"tokens": torch.tensor(tokens)}
    loss = trainer._compute_loss(trainer.model, inputs)
    torch.testing.assert_close(loss.double(), total / tokens, rtol=1e-4, atol=1e-6)
    without = {name: value for name, value in inputs.items() if name != "importance_weights"}
    assert abs(trainer._compute_loss(trainer.model, without) - loss) > 1e-4
    logged = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    if mode == "token_truncate":
        assert logged["sampling/importance_sampling_ratio/max"] == pytest.approx(max(weights_seen), rel=1e-4)
        mean = sum(weights_seen) / tokens
        assert logged["sampling/importance_sampling_ratio/mean"] == pytest.approx(mean, rel=1e-4)
    assert logged["sampling/sampling_logp_difference/max"] > 0.05


def test_ppo_weighs_nothing_where_there_is_nothing_to_correct(tiny_models, tmp_path, monkeypatch):
    vllm_stub.install(monkeypatch)
    same = ppo_trainer(tiny_models("llama"), tmp_path / "on", use_vllm=True)
    off = ppo_trainer(
        tiny_models("llama"), tmp_path / "off", use_vllm=True, vllm_importance_sampling_correction=False
    )
    built_in = ppo_trainer(tiny_models("llama"), tmp_path / "built_in")
    rows = [dict(same.train_dataset[0])] * 8
    weights = same._generate_and_score_completions(rows)["importance_weights"]
    torch.testing.assert_close(weights, torch.ones(8, 1), rtol=0, atol=1e-4)
    for trainer in (off, built_in):
        assert "importance_weights" not in trainer._generate_and_score_completions(rows)


# ----------------------------------------------------------------------------------------------- 04 and 10


@pytest.mark.parametrize("mode", ["colocate", "server"])
def test_greedy_answers_are_those_of_the_built_in_sampler(context, served, mode, tmp_path):
    server, address = served
    ctx = context(mode=mode, server_base_url=address)
    records = load_records(ctx.inputs["train"])

    def answers(config, journal):
        found = answer_records(records, ctx.inputs["checkpoint"], config, 2, 0, tmp_path / journal, {})
        assert all(len(samples) == 2 for samples in found.samples)
        return found

    by_vllm = answers(ctx.config.model, "vllm.jsonl")
    ctx.config.model.vllm = VllmSection()
    assert by_vllm.completions == answers(ctx.config.model, "built_in.jsonl").completions
    greedy = [request for request in server.requests if request["temperature"] == 0]
    sampled = [request for request in server.requests if request["temperature"] == 1]
    if mode == "server":
        assert {request["n"] for request in greedy} == {1} and {request["n"] for request in sampled} == {2}
        assert all(request["logprobs"] is None for request in server.requests)
    else:
        assert not server.requests


@pytest.mark.parametrize("mode", ["colocate", "server"])
def test_no_token_beyond_the_tokenizer_is_sampled(context, monkeypatch, tmp_path, mode):
    vllm_stub.install(monkeypatch)
    folder = make_padded_stand_in(tmp_path / "padded")
    _, address, http = vllm_stub.serve(monkeypatch, str(folder))
    settings = {"mode": mode, "server_base_url": address}
    policy = load_policy(folder, ModelSection())
    size, prompts = len(policy[1]), [[40, 41, 42], [50, 51]]
    answers = complete(*policy, prompts, max_new_tokens=8)
    assert (
        vllm_completer(*policy, context(**settings).config.model, prompts)(prompts, max_new_tokens=8)
        == answers
    )
    trainer = group_trainer(
        SharedPrefixGRPOTrainer,
        folder,
        tmp_path,
        use_vllm=True,
        **{f"vllm_{name}": value for name, value in settings.items()},
    )
    del trainer._generate_single_turn  # the made-up completions
    assert trainer._generate_and_score_completions(rollout_inputs())["completion_ids"].max() < size
    http.shutdown()


def test_one_engine_answers_for_one_policy_after_another(context, tiny_models, monkeypatch):
    engine = vllm_stub.install(monkeypatch)
    ctx = context()
    prompts = [[40, 41, 42], [50, 51]]
    for checkpoint in (ctx.inputs["checkpoint"], tiny_models("llama"), ctx.inputs["checkpoint"]):
        policy = load_policy(checkpoint, ctx.config.model.model)
        asked = vllm_completer(*policy, ctx.config.model, prompts)
        assert asked(prompts, max_new_tokens=8) == complete(*policy, prompts, max_new_tokens=8)
    assert len(engine.started) == 1 and engine.started[0].loads == 3


def test_candidates_come_from_vllm(context, monkeypatch, capsys):
    engine = vllm_stub.install(monkeypatch)
    ctx = context()
    records = load_records(ctx.inputs["train"])[:3]
    rows = sample_candidates(ctx, records, RewardSpec(required_fields=["program"]), 3, "task")
    assert [row["id"] for row in rows] == [record.id for record in records]
    assert all(len(row["candidates"]) == 3 for row in rows)
    assert len({candidate["text"] for row in rows for candidate in row["candidates"]}) > 3
    assert all(c["truncated"] == (c["token_ids"][-1] != 1) for row in rows for c in row["candidates"])
    assert engine.started[0].settings["max_num_seqs"] == 8
    assert ctx.runtime["sampler"] == "vLLM 0.30.0, colocate"
    assert "sampling with vLLM 0.30.0, colocate" in capsys.readouterr().out


# ------------------------------------------------------------------------------------ fallback, mistakes


def test_without_vllm_the_built_in_sampler_works_and_says_so(context, capsys, monkeypatch):
    monkeypatch.setattr(vllm_sampling, "is_vllm_available", lambda: False)
    ctx = context()
    records, spec = load_records(ctx.inputs["train"])[:2], RewardSpec(required_fields=["program"])
    asked = sample_candidates(ctx, records, spec, 2, "task")
    said = capsys.readouterr().out
    assert said.count("vLLM is not installed: the built-in sampler samples instead") == 1
    assert ctx.runtime["sampler"].startswith("built-in")
    ctx.config.model.vllm = VllmSection()
    assert sample_candidates(ctx, records, spec, 2, "task") == asked
    assert "vLLM" not in capsys.readouterr().out
    ctx.config.model.vllm = VllmSection(use_vllm=True)
    assert vllm_arguments(ctx, correction=True) == {}
    assert not build("06", ctx).use_vllm


def test_nothing_is_said_where_nothing_is_asked(context, monkeypatch, capsys):
    vllm_stub.install(monkeypatch)
    ctx = context()
    ctx.config.model.vllm = VllmSection()
    announce_sampler(ctx)
    assert vllm_arguments(ctx, correction=True) == {} and capsys.readouterr().out == "" and ctx.runtime == {}


@pytest.mark.parametrize(
    ("settings", "processes", "message"),
    [
        ({"tensor_parallel_size": 2}, 1, "vllm.tensor_parallel_size 2 does not divide the 1 processes"),
        ({"max_model_length": 207}, 1, "vllm.max_model_length 207 is less than a prompt of 200 tokens"),
        ({"mode": "server"}, 2, "algo.on_policy_fraction between 0 and 1"),
        ({"tensor_parallel_size": 2}, 2, "algo.on_policy_fraction between 0 and 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(context, monkeypatch, settings, processes, message):
    vllm_stub.install(monkeypatch)
    monkeypatch.setattr(vllm_sampling, "num_processes", lambda: processes)
    with pytest.raises(UserError, match=message):
        vllm_arguments(context("03", **settings), correction=False, equal_shares=False)


def test_a_policy_in_4_bits_is_refused(context, monkeypatch):
    vllm_stub.install(monkeypatch)
    ctx = context()
    ctx.config.model.model.load_in_4bit = True
    with pytest.raises(UserError, match="4 bits would round away"):
        vllm_arguments(ctx, correction=True)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_weights_are_those_of_peft_when_it_merges(tiny_models, architecture):
    """And the names are those of the base model: GPT-2 keeps its layers transposed, and its head is tied."""
    policy = tiny_model(tiny_models(architecture), lora=True)
    base = {name: value.clone() for name, value in policy.named_parameters()}
    found = {name: value.clone() for name, value in merged_weights(policy)}
    assert all(torch.equal(value, base[name]) for name, value in policy.named_parameters())
    plain = dict(policy.merge_and_unload().named_parameters())
    assert found.keys() == plain.keys()
    for name, value in plain.items():
        torch.testing.assert_close(found[name], value.detach(), rtol=0, atol=1e-6)


def test_answers_take_an_engine_per_process(context, monkeypatch):
    vllm_stub.install(monkeypatch)
    ctx = context(tensor_parallel_size=2)
    policy = load_policy(ctx.inputs["checkpoint"], ctx.config.model.model)
    with pytest.raises(UserError, match="vllm.mode server and give it to vllm serve"):
        vllm_completer(*policy, ctx.config.model, [[40]])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"weight_transfer_config": None},
            "takes no weights; start it with VLLM_SERVER_DEV_MODE=1 vllm serve",
        ),
        ({"model_config": {"logprobs_mode": "raw_logprobs"}}, "--logprobs-mode raw_logprobs, which biases"),
    ],
)
def test_a_server_started_wrongly_is_named(context, served, settings, message):
    server, address = served
    server.settings |= settings
    with pytest.raises(UserError, match=message):
        vllm_arguments(context(mode="server", server_base_url=address), correction=True)


def test_a_server_that_is_not_there_is_named(context, monkeypatch):
    vllm_stub.install(monkeypatch)
    ctx = context(mode="server", server_base_url="http://127.0.0.1:9", server_timeout=0.0)
    with pytest.raises(UserError, match=r"can't be reached at http://127.0.0.1:9 after 0.0 seconds"):
        vllm_arguments(ctx, correction=True)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("mode: pipe", "colocate"),
        ("gpu_memory_utilization: 0", "gpu_memory_utilization must be above 0 and at most 1"),
        ("tensor_parallel_size: 0", "tensor_parallel_size must be at least 1"),
        ("server_base_url: localhost:8000", "must begin with http"),
        ("importance_sampling_clip_min: 3", "importance_sampling_clip_min must be below its clip_max"),
        (
            "{importance_sampling_clip_max: null, importance_sampling_mode: token_truncate}",
            "importance_sampling_mode token_truncate needs",
        ),
        ("importance_sampling_cap: 2", "importance_sampling_c"),
    ],
)
def test_mistakes_in_the_section_are_named(tmp_path, setting, message):
    (tmp_path / "model.yaml").write_text(
        f"vllm:\n  {setting}\n" if setting[0] != "{" else f"vllm: {setting}\n"
    )
    with pytest.raises(UserError, match=message):
        load_tier(ModelConfig, tmp_path / "model.yaml")


# ------------------------------------------------------------------------------------- the stand-in itself


def test_the_stand_in_has_vllms_interface():
    found = importlib.util.find_spec("vllm")
    if found is None:
        pytest.skip("vLLM is not installed: its source cannot be compared with the stand-in")
    check_against(Path(found.origin).parent)


def check_against(source: Path) -> None:
    """Raise AssertionError where the stand-in takes what vLLM's source in a folder does not."""

    def classes(file: str) -> dict[str, ast.ClassDef]:
        tree = ast.parse((source / file).read_text(encoding="utf-8"))
        return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}

    def fields(node: ast.ClassDef) -> set[str]:
        return {each.target.id for each in node.body if isinstance(each, ast.AnnAssign)}

    def arguments(node: ast.ClassDef, method: str) -> set[str]:
        (found,) = (each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == method)
        return {each.arg for each in found.args.args + found.args.kwonlyargs}

    stub = {
        node.name: node
        for node in ast.parse(Path(vllm_stub.__file__).read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    }
    pairs = [("sampling_params.py", "SamplingParams"), ("outputs.py", "CompletionOutput")]
    for file, name in [*pairs, ("logprobs.py", "Logprob")]:
        assert fields(stub[name]) <= fields(classes(file)[name]), name
    llm, own = classes("entrypoints/llm.py")["LLM"], stub["LLM"]
    engine = fields(classes("engine/arg_utils.py")["EngineArgs"])  # what LLM's other arguments go to
    assert arguments(own, "__init__") <= arguments(llm, "__init__") | engine
    for method in ("generate", "sleep", "wake_up", "reset_prefix_cache"):
        assert arguments(own, method) <= arguments(llm, method), method
    asked = {"prompt", "return_token_ids", "return_tokens_as_token_ids", *fields(stub["SamplingParams"])}
    assert asked <= fields(classes("entrypoints/openai/completion/protocol.py")["CompletionRequest"])
