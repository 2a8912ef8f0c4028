"""A data set and a reward component of the user's own: the documentation's example, and what goes wrong."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tests.support.scripts import execute_stage
from utils.data.readers import all_readers
from utils.data.records import load_records
from utils.data.settings import DatasetConfig
from utils.data.sources import read_splits
from utils.data.user_reader import read_own
from utils.evaluation.reward_components import components
from utils.frame.config import load_tier
from utils.frame.files import REPO_ROOT, UserError, read_json, read_jsonl, sha256_of
from utils.frame.user_code import load_function
from utils.grading.grade import grade
from utils.grading.tasks import task_of
from utils.models.sampling import Completion
from utils.rewards.audit.audit_candidates import paid_otherwise, read_candidates
from utils.rewards.spec import (
    RewardSpec,
    load_reward_spec,
    own_weights,
    paid_weights,
    verified,
    write_reward_spec,
)
from utils.rewards.user_components import check_own, own_rewards, with_sources

DOCUMENT = REPO_ROOT / "docs" / "extending.md"
EXAMPLE = re.compile(r"<!-- file: my_data/(\S+) -->\n```\w+\n(.*?)```", re.DOTALL)
# Beside the example's component one that is never 0, negative, and not paid.
LENGTH = "def length(record, completion):\n    return -len(completion) / 100\n"


# ----------------------------------------------------------------------- the example of the documentation


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
        code = execute_stage(script, [*argv, "--output_dir", str(folder / "outputs")])
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
    words = ["--output_dir", str(example / "outputs"), "--reward_config", str(example / "reward.yaml")]
    before = (example / "rewards.py").read_text()
    try:
        (example / "rewards.py").write_text(before.replace("completion", "answer"))
        assert execute_stage("02_build_rewards.py", words) == 2
        assert "input external/rewards.py: content changed" in capfd.readouterr().err
    finally:
        (example / "rewards.py").write_text(before)


# ------------------------------------------------------------------------------------------- the reader


def rows_of(tmp_path, code: str, form: str = "gsm8k", required=()):
    """(rows, problems) of a reader with this code."""
    (tmp_path / "reader.py").write_text(code)
    (tmp_path / "train.txt").write_text("3\n")
    return read_own(tmp_path / "train.txt", "train", tmp_path / "reader.py", all_readers()[form], required)


def yielding(*rows: dict) -> str:
    return f"from math import nan\n\n\ndef read(path, split):\n    return {list(rows)!r}\n"


GOOD = {"question": "1+1?", "answer": 2}


def test_a_row_gets_its_closing_line_and_its_name(tmp_path):
    rows, problems = rows_of(
        tmp_path, yielding(GOOD, GOOD | {"id": 7, "answer": "1,200", "solution": "x\n#### 1,200"})
    )
    assert problems == []
    assert [row.id for row in rows] == ["train-0", "7"]
    assert [row.answer for row in rows] == ["2", "1200"]
    assert [row.solution for row in rows] == ["#### 2", "x\n#### 1,200"]
    assert rows[0].source == "train.txt#0"
    (row,), _ = rows_of(tmp_path, yielding(GOOD | {"answer": "\\frac{1}{2}", "solution": "Half."}), "math")
    assert row.solution == "Half.\n\\boxed{\\frac{1}{2}}"


def test_finqa_rows_are_checked_as_finqas_own(tmp_path):
    row = {
        "question": "growth?",
        "program": "subtract(5, 3)",
        "answer": 2,
        "table": [["", "2001"], ["a", "5"]],
        "report": "X/1.pdf",
    }
    rows, problems = rows_of(tmp_path, yielding(row, row | {"program": "nothing"}), "finqa")
    assert [(each.answer, each.level, each.report) for each in rows] == [("2", 1, "X/1.pdf")]
    assert [(p.place, p.code) for p in problems] == [("row 1", "unparsable_gold")]
    (tmp_path / "reader.py").write_text(yielding(row | {"answer": 3}))
    config = DatasetConfig(
        dataset="finqa", name="x", reader=str(tmp_path / "reader.py"), data_root=str(tmp_path)
    )
    splits = read_splits(config, {"train": tmp_path / "train.txt"}, task_of("finqa").gold_fault)
    assert [p.code for p in splits["train"].problems] == ["gold_program"]


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        ({"answr": 2}, "unknown_key", 'did you mean "answer"'),
        ({"question": None}, "missing_key", "'question' is missing"),
        ({"question": 3}, "wrong_type", "'question' must be text"),
        ({"answer": "two"}, "unparsable_gold", "must be a number"),
        ({"answer": "12,34"}, "unparsable_gold", "must be a number"),
        ({"answer": float("nan")}, "not_finite", "not a finite number"),
        ({"answer": None}, "missing_key", "'answer' is missing"),
        ({"solution": "#### 3"}, "two_answers", "'answer' is 2"),
        ({"solution": ["a"]}, "wrong_type", "'solution' must be text"),
        ({"level": "hard"}, "wrong_type", "'level' must be a whole number"),
        ({"level": True}, "wrong_type", "'level' must be a whole number"),
        ({"type": 3}, "wrong_type", "'type' must be text"),
        ({"question": "\ud800"}, "not_unicode", "surrogate"),
    ],
)
def test_a_bad_row_is_a_problem_and_the_others_stay(tmp_path, change, code, says):
    rows, problems = rows_of(tmp_path, yielding(GOOD | change, GOOD))
    assert [row.id for row in rows] == ["train-1"]
    assert (problems[0].place, problems[0].severity, problems[0].code) == ("row 0", "error", code)
    assert says in problems[0].message


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("def read(path, split):\n    yield {}\n    1 / 0\n", "reader.py:3: read() raised ZeroDivisionError"),
        ("def read(path, split):\n    open(path + 'x')\n", "reader.py:2: read() raised TypeError"),
        ("def read(path, split):\n    raise SystemExit('no')\n", "reader.py:2: read() raised SystemExit: no"),
        ("def read(path, split):\n    return 7\n", "must yield a mapping per row, found a number 7"),
        ("def read(path, split):\n    return ['x']\n", "must yield a mapping per row, found text 'x'"),
        ("def read(path):\n    return []\n", "read(path) cannot be called as read(path, split)"),
        ("def load(path, split):\n    return []\n", 'has no function "read"; valid: load'),
        ("import nosuchmodule\n", "reader.py:1: loading the file raised ModuleNotFoundError"),
        ("def read(:\n", "reader.py:1: not valid Python"),
        ("x = '\0'", "not valid Python"),
    ],
)
def test_a_reader_that_fails_is_one_line_with_its_place(tmp_path, code, says):
    with pytest.raises(UserError) as raised:
        rows_of(tmp_path, code)
    assert says in str(raised.value) and "\n" not in str(raised.value)
    assert "reader.py" in str(raised.value)


def test_a_reader_without_rows_is_an_error_of_the_file(tmp_path):
    rows, problems = rows_of(tmp_path, yielding())
    assert rows == [] and [(p.place, p.code) for p in problems] == [("file", "no_rows")]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("dataset: gsm8k\nreader: r.py\n", "reader needs a name"),
        ("dataset: sample\nname: x\n", "must be finqa, gsm8k or math"),
        ("dataset: gsm8k\nname: a/b\n", "name must be letters"),
        ("dataset: gsm8k\nname: x\nfiles: {dev: a}\n", 'found "dev"'),
    ],
)
def test_a_dataset_tier_that_cannot_be_is_refused(tmp_path, text, says):
    (tmp_path / "d.yaml").write_text(text)
    with pytest.raises(UserError, match=re.escape(says)):
        load_tier(DatasetConfig, tmp_path / "d.yaml")


# ---------------------------------------------------------------------------------- the reward component


def spec_with(tmp_path, code: str, name: str = "mine", weight: float = 0.5, **other) -> RewardSpec:
    """A specification as 02 writes it, with one component that has this code."""
    (tmp_path / "rewards.py").write_text(code)
    own = {name: {"file": str(tmp_path / "rewards.py"), "weight": weight, **other}}
    (tmp_path / "reward.yaml").write_text(yaml.safe_dump({"own": own}))
    return with_sources(load_tier(RewardSpec, tmp_path / "reward.yaml"))


@pytest.fixture
def record(example):
    return load_records(example / "outputs/run_001/01_preprocessing/test.jsonl")[0]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("return float('nan')", "must return a number of at most 1e+06 in size, found nan"),
        ("return float('-inf')", "found -inf"),
        ("return 1e7", "found 10000000.0"),
        ("return None", "found None"),
        ("return '0.5'", "found '0.5'"),
        ("return [0.5]", "found [0.5]"),
        ("return 1 / len(completion)", "rewards.py:2: mine() raised ZeroDivisionError"),
        ("raise SystemExit", "rewards.py:2: mine() raised SystemExit"),
        ("return mine(record, completion)", "rewards.py:2: mine() raised RecursionError"),
        ("record.level = 9", "rewards.py:2: mine() raised FrozenInstanceError"),
        ("import random; return random.random()", "of the same completion; it must depend on nothing else"),
    ],
)
def test_a_function_that_fails_names_file_component_and_record(tmp_path, record, body, says):
    spec = spec_with(tmp_path, f"def mine(record, completion):\n    {body}\n")
    with pytest.raises(UserError) as raised:
        check_own(own_rewards(spec), [(record, "#### 36")])
    line = str(raised.value)
    assert says in line and "\n" not in line
    assert line.startswith("rewards.py") and f"(own reward mine, record {record.id})" in line


def test_a_function_cannot_change_what_is_graded(tmp_path, record):
    record = replace(record, table=[["a", "1"]])
    spec = spec_with(tmp_path, "def mine(record, completion):\n    record.table.clear()\n    return 1\n")
    assert own_rewards(spec)[0].score(record, "x") == 1.0
    assert record.table == [["a", "1"]]


def test_the_specification_keeps_the_text_and_its_bytes(tmp_path):
    code = "def other(record, completion):\n\n    return 1  # 'ä' \t\n"
    spec = spec_with(tmp_path, code, function="other")
    write_reward_spec(tmp_path / "reward_spec.yaml", spec)
    (tmp_path / "rewards.py").unlink()
    kept = load_reward_spec(tmp_path / "reward_spec.yaml")
    assert kept == spec and kept.own["mine"].source == code and kept.own["mine"].file == "rewards.py"
    assert own_rewards(kept)[0].function("record", "completion") == 1
    write_reward_spec(tmp_path / "plain.yaml", RewardSpec())
    assert "own" not in yaml.safe_load((tmp_path / "plain.yaml").read_text())


def test_it_is_paid_like_the_task_and_never_validates(tmp_path):
    spec = spec_with(tmp_path, "def mine(record, completion):\n    return 1\n")
    paid = {reward: own_weights(spec, reward) for reward in ("combined", "task", "intrinsic")}
    assert paid == {"combined": {"mine": 0.5}, "task": {"mine": 0.5}, "intrinsic": {"mine": 0.0}}
    assert verified(spec).own == {}
    nothing = replace(spec.weights, intrinsic=0.0, correctness=0.0, format=0.0)
    assert paid_weights(replace(spec, weights=nothing), "task") == nothing


def test_an_evaluations_total_has_the_weighted_component(tmp_path, record):
    spec = spec_with(tmp_path, "def mine(record, completion):\n    return 2\n")
    spec = replace(spec, weights=replace(spec.weights, intrinsic=0.0))
    found = components(record, Completion("#### 36", (1,), False), None, grade(record, "#### 36"), spec)
    assert found["mine"] == 2.0 and found["total"] == 1.0 + 0.5 * 2.0


@pytest.mark.parametrize(
    ("own", "says"),
    [
        ({"total": {"file": "a.py"}}, "own.total: the name must be small letters"),
        ({"Mine": {"file": "a.py"}}, "own.Mine: the name must be small letters"),
        ({"mine": {}}, "own.mine.file must name the Python file"),
        ({"mine": {"file": "a.py", "weight": -1}}, "own.mine.weight must be at least 0"),
        ({"mine": {"file": "a.py", "wieght": 1}}, 'unknown key "own.mine.wieght"; did you mean "weight"?'),
    ],
)
def test_a_reward_tier_that_cannot_be_is_refused(tmp_path, own, says):
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"own": own}))
    with pytest.raises(UserError, match=re.escape(says)):
        load_tier(RewardSpec, tmp_path / "r.yaml")


def test_a_file_with_a_token_is_not_copied(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "planted-0123456789")
    with pytest.raises(UserError, match="holds an access token") as raised:
        spec_with(tmp_path, "KEY = 'planted-0123456789'\n")
    assert "planted" not in str(raised.value).replace(str(tmp_path), "")


def test_a_missing_file_is_a_missing_input(tmp_path, capfd, run):
    (tmp_path / "reward.yaml").write_text("own: {mine: {file: nosuch/rewards.py}}\n")
    words = ["--reward_config", str(tmp_path / "reward.yaml"), "--output_dir", str(run.parent)]
    assert execute_stage("02_build_rewards.py", words) == 2
    assert capfd.readouterr().err == "error: missing input nosuch/rewards.py: no such file or folder\n"


def test_a_dataclass_in_a_file_works(tmp_path):
    code = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n\n"
        "@dataclass\nclass Pair:\n    a: int\n\n\ndef f(x):\n    return Pair(x).a\n"
    )
    assert load_function(code, "f.py", "f", ("x",))(3) == 3
