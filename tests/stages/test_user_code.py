"""A data set and reward components of the user's own: the documentation's example through the stages."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tests.support.scripts import execute_stage
from utils.data.records import load_records
from utils.frame.files import REPO_ROOT, read_json, read_jsonl, sha256_of
from utils.grading.grade import grade
from utils.rewards.audit.audit_candidates import paid_otherwise, read_candidates
from utils.rewards.spec import (
    load_reward_spec,
)

DOCUMENT = REPO_ROOT / "docs" / "extending.md"

EXAMPLE = re.compile(r"<!-- file: my_data/(\S+) -->\n```\w+\n(.*?)```", re.DOTALL)

# Beside the example's component one that is never 0, negative, and not paid.
LENGTH = "def length(record, completion):\n    return -len(completion) / 100\n"


@pytest.fixture(scope="module")
def example(tmp_path_factory, tiny_models):
    """The files of the documentation, and a run over them: its folder."""
    folder = tmp_path_factory.mktemp("own")
    for name, text in EXAMPLE.findall(DOCUMENT.read_text(encoding="utf-8")):
        (folder / name).write_text(text.replace("my_data", str(folder)), encoding="utf-8")
    (folder / "length.py").write_text(LENGTH)
    reward = yaml.safe_load((folder / "reward.yaml").read_text())
    reward["own"]["length"] = {"file": str(folder / "length.py"), "weight": 0.0}
    (folder / "reward.yaml").write_text(yaml.safe_dump(reward, sort_keys=False))
    model = str(tiny_models("llama"))
    small = ["--quick_test", "--validation.num_items", "1"]
    small += ["--model.name_or_path", model, "--model.teacher_name_or_path", model]
    short = [*small, "--generation.max_new_tokens", "8"]
    rollouts = [*short, "--num_rollouts", "1", "--training.save_steps", "9"]
    alone = ["--policy", "grpo", "--teacher_metrics", "false", "--reference_metrics", "false"]
    for script, *argv in (
        ("00_check_data.py", "--dataset_config", str(folder / "shop.yaml")),
        ("01_prepare_dataset.py", "--dataset_config", str(folder / "shop.yaml")),
        ("02_build_rewards.py", "--reward_config", str(folder / "reward.yaml")),
        ("03_sft_train.py", *small, "--max_steps", "1", "--generation.max_new_tokens", "128"),
        ("04_generate_candidates.py", *short, "--num_candidates", "2"),
        ("05_train_ppo.py", *rollouts),
        ("06_train_grpo.py", *rollouts),
        ("07_train_rloo.py", *rollouts),
        ("10_evaluate.py", *short, *alone),
    ):
        code = execute_stage(script, [*argv, "--outputs_root", str(folder / "outputs")])
        assert code == 0, script
    return folder


@pytest.fixture
def run(example) -> Path:
    return example / "outputs" / "run_001"


def own_values(record, text: str) -> dict[str, float]:
    """What both components say, by their definition."""
    asked, said = (set(re.findall(r"\d+", part)) for part in (record.question, text))
    return {"uses_the_numbers": len(asked & said) / len(asked), "length": -len(text) / 100}


def test_records_are_of_the_named_set_in_its_form(run):
    records = load_records(run / "01_preprocessing" / "test.jsonl")
    assert [record.dataset for record in records] == ["gsm8k:shop"] * 2
    assert records[0].level == 1
    assert records[0].target_text == "15+21=36\n#### 36"
    assert records[0].input_text.endswith('\nOutput the final answer after "####".')
    assert grade(records[0], "It is\n#### 36").correct and not grade(records[0], "#### 35").correct
    metrics = read_json(run / "10_evaluation" / "grpo" / "metrics.json")
    assert metrics["dataset"] == "gsm8k:shop" and "strict_accuracy" in metrics


def test_candidates_have_the_components_as_paid_and_measured(run):
    records = {record.id: record for record in load_records(run / "01_preprocessing" / "train.jsonl")}
    rows = read_jsonl(run / "04_candidates" / "candidates.jsonl")
    assert len(rows) == len(records) == 3
    for row in rows:
        for each in row["candidates"]:
            expected = own_values(records[row["id"]], each["text"])
            assert {name: each["raw"][name] for name in expected} == pytest.approx(expected, abs=1e-6)
            assert each["reward"]["uses_the_numbers"] == pytest.approx(
                0.2 * expected["uses_the_numbers"], abs=1e-6
            )
            assert str(each["reward"]["length"]) == "0.0"
            parts = {name: value for name, value in each["reward"].items() if name != "total"}
            assert each["reward"]["total"] == pytest.approx(sum(parts.values()), abs=2e-6)
    audit = read_json(run / "04_candidates" / "reward_audit.json")["components"]
    assert {"uses_the_numbers", "length"} < set(audit)
    spec = load_reward_spec(run / "02_rewards" / "reward_spec.yaml")
    assert paid_otherwise(rows, spec) is None
    assert "measured by the own rewards" in paid_otherwise(rows, replace(spec, own={}))
    scores = read_candidates(rows).scores
    assert scores["length"].tolist() == [each["raw"]["length"] for row in rows for each in row["candidates"]]


@pytest.mark.parametrize("stage", ["05_ppo", "06_grpo", "07_rloo"])
def test_training_logs_the_component_that_is_paid(run, stage):
    logs = [row for row in read_jsonl(run / stage / "logs" / "metrics.jsonl") if "reward" in row]
    assert logs
    for row in logs:
        assert 0 <= row["rewards/uses_the_numbers/mean"] <= 0.2
        parts = [value for name, value in row.items() if re.fullmatch(r"rewards/\w+/mean", name)]
        assert row["reward"] == pytest.approx(sum(parts), abs=1e-5)


def test_an_evaluation_reports_the_components_unweighted(run):
    metrics = read_json(run / "10_evaluation" / "grpo" / "metrics.json")["rewards"]
    rows = read_jsonl(run / "10_evaluation" / "grpo" / "samples" / "predictions.jsonl")
    records = {record.id: record for record in load_records(run / "01_preprocessing" / "test.jsonl")}
    for row in rows:
        expected = own_values(records[row["id"]], row["response"])
        assert {name: row["rewards"][name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert metrics["length"]["value"] == pytest.approx(
        sum(row["rewards"]["length"] for row in rows) / len(rows), abs=1e-6
    )


def test_manifests_hold_the_hashes_of_both_files(example, run):
    prepared = read_json(run / "01_preprocessing" / "manifest.json")["inputs"]
    assert prepared["external/reader.py"]["sha256"] == sha256_of(example / "reader.py")
    rewards = read_json(run / "02_rewards" / "manifest.json")["inputs"]
    assert rewards["external/rewards.py"]["sha256"] == sha256_of(example / "rewards.py")
    spec = load_reward_spec(run / "02_rewards" / "reward_spec.yaml")
    assert spec.own["uses_the_numbers"].source == (example / "rewards.py").read_text()
    for stage in ("04_candidates", "05_ppo", "06_grpo", "07_rloo", "10_evaluation/grpo"):
        inputs = read_json(run / stage / "manifest.json")["inputs"]
        assert inputs["02_rewards/reward_spec.yaml"]["sha256"] == sha256_of(
            run / "02_rewards" / "reward_spec.yaml"
        )


def test_no_output_names_a_place_of_this_machine(example, run):
    for file in run.rglob("*"):
        if file.suffix in (".json", ".jsonl", ".yaml", ".csv") and file.name != "runtime.json":
            assert str(example) not in file.read_text(), file


def test_an_edited_function_asks_for_02_again(example, capfd):
    words = ["--outputs_root", str(example / "outputs"), "--reward_config", str(example / "reward.yaml")]
    before = (example / "rewards.py").read_text()
    try:
        (example / "rewards.py").write_text(before.replace("completion", "answer"))
        assert execute_stage("02_build_rewards.py", words) == 2
        assert "input external/rewards.py: content changed" in capfd.readouterr().err
    finally:
        (example / "rewards.py").write_text(before)


@pytest.mark.parametrize(
    ("script", "folder", "file", "function"),
    [
        ("01_prepare_dataset.py", "01_preprocessing", "reader.py", "read"),
        ("02_build_rewards.py", "02_rewards", "rewards.py", "uses_the_numbers"),
    ],
)
def test_a_mistyped_function_deletes_nothing(example, run, capfd, script, folder, file, function):
    option = "--dataset_config" if file == "reader.py" else "--reward_config"
    tier = example / ("shop.yaml" if file == "reader.py" else "reward.yaml")
    words = ["--outputs_root", str(run.parent), option, str(tier)]
    text, before = (example / file).read_text(), sha256_of(run / folder)
    try:
        (example / file).write_text(text.replace(f"def {function}", f"def {function}x"))
        assert execute_stage(script, [*words, "--overwrite"]) == 2
        assert f'{file}: has no function "{function}"' in capfd.readouterr().err
    finally:
        (example / file).write_text(text)
    assert sha256_of(run / folder) == before and execute_stage(script, words) == 0


def test_a_missing_file_is_a_missing_input(tmp_path, capfd, run):
    (tmp_path / "reward.yaml").write_text("own: {mine: {file: nosuch/rewards.py}}\n")
    words = ["--reward_config", str(tmp_path / "reward.yaml"), "--outputs_root", str(run.parent)]
    assert execute_stage("02_build_rewards.py", words) == 2
    assert capfd.readouterr().err == "error: missing input nosuch/rewards.py: no such file or folder\n"
