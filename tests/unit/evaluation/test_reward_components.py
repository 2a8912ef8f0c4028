"""Rewards of evaluated answers: held to what training pays for them, and to sums by hand."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.finished_runs import pretend_finished
from tests.support.records import RECORDS
from tests.support.scripts import execute_stage
from utils.evaluation.critic import KnownScores
from utils.evaluation.reward_components import reward_components, reward_metrics
from utils.evaluation.token_pass import TokenPass
from utils.frame.files import dump_json, read_json, write_jsonl
from utils.frame.manifest import describe_outputs
from utils.grading.grade import grade
from utils.models.prefix.shared_prefix import CompletionBatch
from utils.models.sampling import Completion
from utils.models.teacher import TeacherScores
from utils.models.value_head import ValueHead, save_critic
from utils.rewards.reward_pipeline import RewardPipeline
from utils.rewards.spec import IntrinsicSection, RewardSpec, RewardWeights, write_reward_spec

RIGHT = json.dumps({"program": "subtract(30, 10)"})  # of record 0
TEXTS = [
    RIGHT,
    "no json",
    json.dumps({"program": "subtract(32, 12)"}),
    json.dumps({"program": "add(34, 12)"}),
]
SPEC = RewardSpec(
    weights=RewardWeights(intrinsic=0.25, correctness=2.0, reasoning=0.5, format=3.0),
    intrinsic=IntrinsicSection(missing_eos_penalty=0.7),
    required_fields=["program"],
)


def asked(texts, outcomes, truncated=()):
    """Answers of the first records, None where a text is, and a token pass with these outcomes."""
    completions = [
        None if text is None else Completion(text, [5, 6, 1], number in truncated)
        for number, text in enumerate(texts)
    ]
    return SimpleNamespace(completions=completions), TokenPass({}, [], list(outcomes))


def components(texts, outcomes, spec=SPEC, **more):
    answers, passed = asked(texts, outcomes, **more)
    pairs = zip(RECORDS, texts, strict=False)
    grades = [None if text is None else grade(record, text, spec.required_fields) for record, text in pairs]
    return reward_components(RECORDS[: len(texts)], answers, passed, spec, grades)


def test_components_are_raw_and_the_total_is_their_weighted_sum():
    rows = components(TEXTS, [-1.5, -2.0, 0.0, -4.0], truncated={1})
    zero = {"exact_match": 0, "numeric_match": 0, "program_partial": 0, "format_penalty": 0, "reasoning": 0}
    assert rows[0] == zero | {"exact_match": 1.0, "reasoning": 1.0, "intrinsic": -1.5} | {
        "total": 2.0 * 1.0 + 0.5 * 1.0 - 0.25 * 1.5
    }
    assert rows[1] == zero | {"format_penalty": -0.2, "intrinsic": -2.7} | {
        "total": pytest.approx(-3.0 * 0.2 - 0.25 * 2.7)
    }
    assert rows[2]["numeric_match"] == 0 and rows[2]["exact_match"] == 0  # 20 where 22 is asked
    assert json.dumps(rows).count("-0.0") == 0


def test_totals_are_what_training_pays():
    outcomes = [-1.5, -2.0, -0.5, -4.0]
    truncated = [False, True, False, True]
    batch = CompletionBatch.of([[0]] * 4, [[5, 6, 1]] * 4, torch.device("cpu"))
    q = torch.tensor(outcomes)[:, None] * torch.tensor([0.5, 0.25, 0.25])
    teacher = KnownScores(TeacherScores(q, torch.zeros(4, 3)))
    paid = RewardPipeline(RECORDS[:4], SPEC, "combined", teacher).score_outcomes(
        range(4), batch, TEXTS, torch.tensor(truncated), update=False
    )
    rows = components(TEXTS, outcomes, truncated={1, 3})
    assert [row["total"] for row in rows] == pytest.approx(paid.total.tolist(), abs=2e-6)
    assert len({round(row["total"], 3) for row in rows}) == 4


def test_what_was_not_measured_is_not_there():
    right = json.dumps({"program": "subtract(34, 12)"})  # of record 2
    rows = components([RIGHT, None, right], [None, None, -1.0])
    assert rows[1] is None and "intrinsic" not in rows[0] and "total" not in rows[0]
    assert rows[2]["total"] == pytest.approx(2.25)
    task = RewardSpec(weights=RewardWeights(intrinsic=0.0), required_fields=["program"])
    rows = components([RIGHT, None, right], [None, None, -1.0], task)
    assert rows[0]["total"] == 1.0 == rows[2]["total"] and rows[2]["intrinsic"] == -1.0


def test_means_and_intervals():
    rng = np.random.default_rng(0)
    values = rng.normal(2, 1, 400)
    rows = [{"exact_match": float(value), "total": 1.0} for value in values] + [None]
    rows[0] = {"exact_match": float(values[0])}
    found = reward_metrics(rows, np.random.default_rng(1))
    assert list(found) == ["exact_match", "total"]
    assert found["exact_match"]["n"] == 400 and found["total"]["n"] == 399
    assert found["exact_match"]["value"] == pytest.approx(values.mean())
    low, high = found["exact_match"]["ci95"]
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.05)
    assert found["total"]["ci95"] == [1.0, 1.0]
    assert reward_metrics([{"total": 3.0}], rng) == {"total": {"value": 3.0, "ci95": None, "n": 1}}
    assert reward_metrics([None], rng) == {}


# -------------------------------------------------------------------------------------------- in stage 10


def finished(folder, **more):
    """As `pretend_finished`, of files that are there, with more in the manifest."""
    manifest = {"stage": folder.name, "outputs": describe_outputs(folder, folder.parent), **more}
    (folder / "manifest.json").write_text(dump_json(manifest))


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
    finished(folder / "02_rewards")
    for seed, (stage, method) in enumerate((("03_sft", "sft"), ("05_ppo", "ppo"))):
        nudged(tiny_models("llama"), folder / stage / f"ckpt_{method}" / "best", seed)
    save_critic(ValueHead(32, seed=0), folder / "05_ppo" / "ckpt_ppo" / "best")
    finished(folder / "03_sft")
    config = {
        "algo": {"gamma": 1.0, "lam": 0.95, "kl_coef": 0.05},
        "options": {"reward": "combined"},
        "model": {"generation": {"temperature": 1.0}},
    }
    finished(folder / "05_ppo", inputs={"03_sft/ckpt_sft/best": {}}, config=config)
    for policy in ("sft", "ppo"):
        assert evaluate(folder, policy, tiny_models) == 0
    return folder


def evaluate(folder, policy, tiny_models, *more):
    argv = ["--policy", policy, "--output_dir", str(folder.parent), "--max_new_tokens", "8"]
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
