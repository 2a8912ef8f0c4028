"""10 on policies with a reference and a critic: the values of their tokens, and rewards."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.finished_runs import pretend_finished
from tests.support.records import RECORDS
from tests.support.scripts import execute_stage
from utils.frame.files import read_json, write_jsonl
from utils.frame.manifest import describe
from utils.models.value_head import ValueHead, save_critic
from utils.rewards.spec import IntrinsicSection, RewardSpec, RewardWeights, write_reward_spec

SPEC = RewardSpec(
    weights=RewardWeights(intrinsic=0.25, correctness=2.0, reasoning=0.5, format=3.0),
    intrinsic=IntrinsicSection(missing_eos_penalty=0.7),
    required_fields=["program"],
)


def nudged(source, folder, seed):
    """A copy of a model with noise on its weights."""
    model = AutoModelForCausalLM.from_pretrained(source)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.03 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, tiny_models):
    """A run with an SFT policy and a PPO policy with its critic, evaluated; policy -> its folder."""
    folder = tmp_path_factory.mktemp("evaluated") / "run_001"
    write_jsonl(folder / "01_preprocessing" / "test.jsonl", (record.to_json() for record in RECORDS))
    pretend_finished(folder / "01_preprocessing")
    (folder / "02_rewards").mkdir()
    write_reward_spec(folder / "02_rewards" / "reward_spec.yaml", SPEC)
    pretend_finished(folder / "02_rewards")
    for seed, (stage, method) in enumerate((("03_sft", "sft"), ("05_ppo", "ppo"))):
        nudged(tiny_models("llama"), folder / stage / f"ckpt_{method}" / "best", seed)
    save_critic(ValueHead(32, seed=0), folder / "05_ppo" / "ckpt_ppo" / "best")
    pretend_finished(folder / "03_sft")
    config = {
        "algo": {"gamma": 1.0, "lam": 0.95, "kl_coef": 0.05, "value_model": "shared"},
        "options": {"reward": "combined"},
        "model": {"generation": {"temperature": 1.0, "max_new_tokens": 8}},
    }
    best = "03_sft/ckpt_sft/best"
    pretend_finished(folder / "05_ppo", inputs={best: describe(folder / best)}, config=config)
    for policy in ("sft", "ppo"):
        assert evaluate(folder, policy, tiny_models) == 0
    return folder


def evaluate(folder, policy, tiny_models, *more):
    argv = ["--policy", policy, "--outputs_root", str(folder.parent), "--max_new_tokens", "8"]
    argv += ["--model.teacher_name_or_path", str(tiny_models("llama")), *more]
    return execute_stage("10_evaluate.py", argv)


def rows_of(folder, name):
    return [json.loads(line) for line in (folder / "samples" / name).open()]


def test_stage_10_writes_the_token_values_and_rewards(run_dir):
    out = run_dir / "10_evaluation" / "ppo"
    metrics, predictions = read_json(out / "metrics.json"), rows_of(out, "predictions.jsonl")
    tokens = rows_of(out, "tokens.jsonl")
    assert [row["id"] for row in tokens] == [record.id for record in RECORDS]
    for row, prediction in zip(tokens, predictions, strict=True):
        names = ["log_prob", "intrinsic", "kl_teacher", "kl_reference", "log_ratio", "advantage"]
        assert list(row["values"]) == names
        assert {len(column) for column in (row["tokens"], *row["values"].values())} == {prediction["tokens"]}
        # Without a normaliser the intrinsic reward of the answer is the sum over its tokens (logprob).
        cut = SPEC.intrinsic.missing_eos_penalty * prediction["truncated"]
        assert prediction["rewards"]["intrinsic"] == pytest.approx(
            sum(row["values"]["intrinsic"]) - cut, abs=1e-3
        )
    totals = [prediction["rewards"]["total"] for prediction in predictions]
    assert metrics["rewards"]["total"]["value"] == pytest.approx(np.mean(totals))
    assert metrics["rewards"]["total"]["n"] == len(RECORDS)
    every = np.concatenate([row["values"]["kl_reference"] for row in tokens])
    part = metrics["reference"]["on_responses"]
    assert part["reverse_kl"]["value"] == pytest.approx(every.mean(), abs=1e-4) and every.mean() > 0.01
    assert read_json(out / "manifest.json")["inputs"].keys() >= {"03_sft/ckpt_sft/best"}


def test_stage_10_holds_the_sft_policy_against_itself(run_dir):
    out = run_dir / "10_evaluation" / "sft"
    part = read_json(out / "metrics.json")["reference"]["on_responses"]
    assert part["kl_per_text"]["value"] == 0 and part["top1_agreement"]["value"] == 1
    assert list(rows_of(out, "tokens.jsonl")[0]["values"]) == ["log_prob", "intrinsic", "kl_teacher"]


def test_stage_10_can_do_without_the_reference(run_dir, tiny_models):
    assert evaluate(run_dir, "ppo", tiny_models, "--reference_metrics", "false") == 2  # other work
    before = {path.name: path.read_bytes() for path in (run_dir / "10_evaluation" / "ppo").rglob("*.json*")}
    again = ["--reference_metrics", "false", "--overwrite"]
    assert evaluate(run_dir, "ppo", tiny_models, *again) == 0
    out = run_dir / "10_evaluation" / "ppo"
    assert "reference" not in read_json(out / "metrics.json")
    assert list(rows_of(out, "tokens.jsonl")[0]["values"]) == ["log_prob", "intrinsic", "kl_teacher"]
    assert evaluate(run_dir, "ppo", tiny_models, "--overwrite") == 0
    for name in ("metrics.json", "tokens.jsonl", "predictions.jsonl", "manifest.json"):
        path = next(out.rglob(name))
        assert path.read_bytes() == before[name], name
