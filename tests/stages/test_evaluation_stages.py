"""10_evaluate.py and 11_compare_runs.py from the command line, against counts made by hand and real data."""

import json
import os
import subprocess
import sys

import pytest

from tests.support.finished_runs import pretend_finished
from tests.support.scripts import execute_stage
from utils.data.records import Record
from utils.frame.files import REPO_ROOT, read_csv, write_json, write_jsonl
from utils.grading.program import tokenize_program

ITEMS = 30


@pytest.fixture()
def data_root(tmp_path):
    rows = [
        {"question": f"what is {i} + 1?", "answer": f"It is {i} + 1.\n#### {i + 1}"} for i in range(ITEMS)
    ]
    write_jsonl(tmp_path / "gsm8k" / "test.jsonl", rows)
    return tmp_path / "gsm8k"


def responses(path, right, first=0, last=ITEMS):
    """Answers to items first..last-1 by index, right where ``right(i)``."""
    write_jsonl(
        path, ({"index": i, "response": f"#### {i + 1 if right(i) else 0}"} for i in range(first, last))
    )
    return path


def evaluate(tmp_path, data_root, predictions, *more):
    argv = ["--predictions", str(predictions), "--dataset_config", "configs/datasets/gsm8k.yaml"]
    argv += ["--data_root", str(data_root), "--outputs_root", str(tmp_path / "outputs"), *more]
    return execute_stage("10_evaluate.py", argv)


def test_predictions_are_graded_without_any_earlier_stage(tmp_path, data_root, capsys):
    predictions = responses(tmp_path / "p.jsonl", right=lambda i: i % 3 == 0, last=24)
    assert evaluate(tmp_path, data_root, predictions) == 0
    out = tmp_path / "outputs" / "run_001" / "10_evaluation" / "predictions"
    metrics = json.loads((out / "metrics.json").read_text())
    assert (metrics["accuracy"]["value"], metrics["accuracy"]["n"]) == (8 / 30, 30)
    assert metrics["missing"] == {"count": 6, "ids": [f"test-{i}" for i in range(24, 30)]}
    assert metrics["failure_reasons"] == {"missing_prediction": 6, "wrong_answer": 16}
    rows = read_csv(out / "breakdown.csv")
    assert [row["id"] for row in rows] == [f"test-{i}" for i in range(30)]
    assert [row["correct"] for row in rows] == [str(int(i % 3 == 0 and i < 24)) for i in range(30)]
    said = capsys.readouterr().out
    assert "6 of 30 items have no prediction and count as wrong: test-24, test-25" in said
    assert evaluate(tmp_path, data_root, predictions) == 0
    assert "10_evaluation/predictions: up to date" in capsys.readouterr().out


def test_only_the_first_items_on_request(tmp_path, data_root):
    predictions = responses(tmp_path / "p.jsonl", right=lambda i: i < 5)
    assert evaluate(tmp_path, data_root, predictions, "--max_items", "10", "--policy", "outside") == 0
    out = tmp_path / "outputs" / "run_001" / "10_evaluation" / "outside"
    metrics = json.loads((out / "metrics.json").read_text())
    assert (metrics["accuracy"]["value"], metrics["accuracy"]["n"]) == (0.5, 10)


@pytest.mark.parametrize(
    "text,message",
    [
        (
            '{"index": 3, "response": ""}\n{"id": "test-3", "response": ""}',
            "p.jsonl:2: item 'test-3' is already",
        ),
        ('{"id": "train-0", "response": ""}', "p.jsonl:1: unknown id 'train-0'"),
        ('{"index": 30, "response": ""}', "p.jsonl:1: unknown index 30"),
        ('{"index": 0, "response": ""}\n{"index"', "p.jsonl:2: not valid JSON"),
        ('{"index": 0, "predicted": ["add(", "1", "2", ")", "EOF"]}', "answers of 'gsm8k' are no programs"),
    ],
)
def test_bad_predictions_are_one_line_and_exit_2(tmp_path, data_root, capsys, text, message):
    (tmp_path / "p.jsonl").write_text(text)
    assert evaluate(tmp_path, data_root, tmp_path / "p.jsonl") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and message in said and said.count("\n") == 1
    assert not (tmp_path / "outputs" / "run_001" / "10_evaluation" / "predictions" / "manifest.json").exists()


@pytest.mark.parametrize(
    "more,message",
    [
        (["--policy_ckpt", "assets/student"], "give policy_ckpt or predictions, not both"),
        (["--max_items", "0"], "max_items must be at least 1"),
        (["--policy", "../up"], "must be letters"),
        (["--split", "val"], "has no val file of its own"),
        (["--split", "tests"], "must be one of train, val, dev, test"),
    ],
)
def test_impossible_requests(tmp_path, data_root, capsys, more, message):
    predictions = responses(tmp_path / "p.jsonl", right=lambda i: True)
    assert evaluate(tmp_path, data_root, predictions, *more) == 2
    assert message in capsys.readouterr().err


def test_missing_files(tmp_path, data_root, capsys):
    assert evaluate(tmp_path, data_root, tmp_path / "none.jsonl") == 2
    assert "none.jsonl" in capsys.readouterr().err
    predictions = responses(tmp_path / "p.jsonl", right=lambda i: True)
    assert evaluate(tmp_path, tmp_path / "nowhere", predictions) == 2
    assert "nowhere" in capsys.readouterr().err


def test_policy_without_its_checkpoint_names_the_script_to_run(tmp_path, capsys):
    run_dir = tmp_path / "run_001"
    pretend_finished(run_dir / "01_preprocessing", "test.jsonl")
    pretend_finished(run_dir / "02_rewards", "reward_spec.yaml")
    for policy, expected in (("grpo", "06_train_grpo.py"), ("ppo_intrinsic", "05_train_ppo.py")):
        argv = ["--policy", policy, "--outputs_root", str(tmp_path)]
        assert execute_stage("10_evaluate.py", argv) == 2
        assert f"python {expected}" in capsys.readouterr().err
    assert execute_stage("10_evaluate.py", ["--policy", "best", "--outputs_root", str(tmp_path)]) == 2
    assert "'best' is none of base, sft, teacher" in capsys.readouterr().err


def test_a_model_answers_every_item_the_same_twice(tmp_path, tiny_models):
    pytest.importorskip("utils.models.sampling")
    records = [
        Record(f"t-{i}", "sample", "q?", "cash 2001 5" + " ." * i, "t", "3.0", "add(1, 2)", level=1 + i % 2)
        for i in range(5)
    ]
    for run in ("run_001", "run_002"):
        write_jsonl(tmp_path / run / "01_preprocessing" / "test.jsonl", (r.to_json() for r in records))
        pretend_finished(tmp_path / run / "01_preprocessing")
        pretend_finished(tmp_path / run / "02_rewards", "reward_spec.yaml")
        argv = ["--policy", "tiny", "--policy_ckpt", str(tiny_models("llama")), "--run_id", run]
        argv += ["--outputs_root", str(tmp_path), "--max_new_tokens", "8", "--generation.batch_size", "2"]
        argv += ["--teacher_name_or_path", str(tiny_models("llama"))]
        assert execute_stage("10_evaluate.py", argv) == 0
    out = [tmp_path / run / "10_evaluation" / "tiny" for run in ("run_001", "run_002")]
    for name in ("metrics.json", "breakdown.csv", "samples/predictions.jsonl"):
        assert (out[0] / name).read_bytes() == (out[1] / name).read_bytes()
    rows = [json.loads(line) for line in (out[0] / "samples" / "predictions.jsonl").open()]
    assert [row["id"] for row in rows] == [record.id for record in records]
    assert all(1 <= row["tokens"] <= 8 for row in rows)
    assert {row["failure_reason"] for row in rows} <= {"cut_off", "invalid_json", "empty_response"}
    manifest = json.loads((out[0] / "manifest.json").read_text())
    assert "01_preprocessing/test.jsonl" in manifest["inputs"] and len(manifest["inputs"]) == 4


# ------------------------------------------------------------------------------------------ comparison


@pytest.fixture()
def evaluated(tmp_path, data_root):
    """A run whose sft is right on 10 of 30 items and whose grpo on 12 more; and one with grpo alone."""
    weak = responses(tmp_path / "weak.jsonl", right=lambda i: i < 10)
    strong = responses(tmp_path / "strong.jsonl", right=lambda i: i < 22)
    assert evaluate(tmp_path, data_root, weak, "--policy", "sft") == 0
    assert evaluate(tmp_path, data_root, strong, "--policy", "grpo") == 0
    assert evaluate(tmp_path, data_root, weak, "--policy", "grpo", "--run_id", "run_002") == 0
    return tmp_path / "outputs"


def compare(outputs, *more):
    return execute_stage("11_compare_runs.py", ["--outputs_root", str(outputs), *more])


@pytest.mark.usefixtures("unrendered")
def test_comparison_of_all_policies_of_a_run(evaluated, capsys):
    assert compare(evaluated) == 0
    out = evaluated / "run_001" / "11_comparison"
    rows = read_csv(out / "summary.csv")
    assert [(row["policy"], row["correct"], row["n"]) for row in rows] == [
        ("sft", "10", "30"),
        ("grpo", "22", "30"),
    ]
    report = (out / "report.md").read_text()
    assert "| sft → grpo | 30 | +40.0 |" in report and "| 12 | 0 | 0.00049 | 0.00049 * |" in report
    assert "**grpo** answers more items correctly than **sft**: 73.3 % against 33.3 %" in report
    assert "- fixed, 12: `test-10`, `test-11`" in report
    assert (out / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert "grpo answers more items correctly than sft" in capsys.readouterr().out
    assert compare(evaluated) == 0
    assert "11_comparison: up to date" in capsys.readouterr().out


def test_same_evaluations_give_the_same_files(evaluated):
    first = {}
    for more in ([], ["--overwrite"]):
        assert compare(evaluated, *more) == 0
        out = evaluated / "run_001" / "11_comparison"
        files = {
            p.name: p.read_bytes() for p in out.iterdir() if p.suffix in (".csv", ".md", ".png", ".json")
        }
        files.pop("runtime.json")
        assert files == (first or files)
        first = files


@pytest.mark.usefixtures("unrendered")
def test_policies_of_several_runs_are_named_by_run(evaluated):
    assert compare(evaluated, "--runs", "run_001,run_002", "--policies", "grpo", "--run_id", "run_003") == 0
    rows = read_csv(evaluated / "run_003" / "11_comparison" / "summary.csv")
    assert [row["policy"] for row in rows] == ["run_001/grpo", "run_002/grpo"]


def test_nothing_to_compare(evaluated, capsys):
    assert compare(evaluated, "--policies", "ppo") == 2
    assert "python 10_evaluate.py --run_id run_001 --policy ppo" in capsys.readouterr().err
    assert compare(evaluated, "--run_id", "run_009") == 2
    assert "no finished evaluation in" in capsys.readouterr().err
    assert compare(evaluated, "--diff_json", "x.json") == 2
    assert "goes with --diff" in capsys.readouterr().err


def run_script(name, *argv, **kwargs):
    command = [sys.executable, str(REPO_ROOT / name), *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **kwargs)


def test_diff_of_two_runs(evaluated, tmp_path):
    argv = ["--outputs_root", evaluated, "--diff_json", tmp_path / "diff.json"]
    done = run_script("11_compare_runs.py", "--diff", "run_001", "run_002", *argv)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("run_001 -> run_002: ") and lines[1] == "stages"
    assert lines[2] == "  only in run_001: 10_evaluation/sft"
    heads = [line for line in lines[1:] if not line.startswith(" ")]
    assert [head.partition(",")[0] for head in heads] == ["stages", "data", "config", "consequences"]
    document = json.loads((tmp_path / "diff.json").read_text())
    assert {d["category"] for d in document["differences"]} == {"stages", "data", "config", "outputs"}
    assert not (evaluated / "run_001" / "11_comparison").exists()
    same = run_script("11_compare_runs.py", "--outputs_root", evaluated, "--diff", "run_001", "run_001")
    assert same.stdout == "run_001 and run_001: no difference (run ids aside)\n"
    for bad in (["--diff", "run_001"], ["--diff", "run_001", "run_007"]):
        done = run_script("11_compare_runs.py", *bad, "--outputs_root", evaluated)
        assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


# ------------------------------------------------------------------------------------------- real data


def official(shared_data, split):
    items = json.loads((shared_data / "finqa" / "dataset" / f"{split}.json").read_text())
    return [{"id": item["id"], "predicted": tokenize_program(item["qa"]["program"])} for item in items]


@pytest.mark.parametrize("split", ["dev", "test"])
def test_finqa_gold_programs_in_the_official_format(shared_data, tmp_path, split):
    predictions = official(shared_data, split)
    write_json(tmp_path / "gold.json", predictions)
    argv = ["--predictions", "gold.json", "--dataset_config", "configs/datasets/finqa.yaml"]
    argv += ["--data_root", shared_data / "finqa", "--split", split, "--outputs_root", "out"]
    # No model answers, so nothing that models need is imported, which would take many times as long.
    (tmp_path / "torch.py").write_text("raise AssertionError('who needs torch?')")
    done = run_script("10_evaluate.py", *argv, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert (done.returncode, done.stderr) == (0, "")
    out = tmp_path / "out" / "run_001" / "10_evaluation" / "predictions"
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["execution_accuracy"]["value"] == metrics["program_accuracy"]["value"] == 1.0
    assert metrics["accuracy"]["n"] == len(predictions)
    rows = read_csv(out / "breakdown.csv")
    assert [row["id"] for row in rows] == [row["id"] for row in predictions]


def test_finqa_predictions_left_out_lower_the_score(shared_data, tmp_path):
    predictions = official(shared_data, "test")
    for row in predictions[:7]:
        row["predicted"].pop()  # without EOF the last step is lost
    write_json(tmp_path / "gold.json", predictions[:-10])
    argv = ["--predictions", tmp_path / "gold.json", "--dataset_config", "configs/datasets/finqa.yaml"]
    argv += ["--data_root", shared_data / "finqa", "--outputs_root", tmp_path / "out"]
    assert execute_stage("10_evaluate.py", list(map(str, argv))) == 0
    out = tmp_path / "out" / "run_001" / "10_evaluation" / "predictions"
    metrics = json.loads((out / "metrics.json").read_text())
    n = len(predictions)
    assert metrics["execution_accuracy"]["value"] == metrics["accuracy"]["value"] == (n - 17) / n
    assert metrics["missing"]["ids"] == [row["id"] for row in predictions[-10:]]
    assert metrics["failure_reasons"]["missing_prediction"] == 10


def test_gsm8k_gold_solutions_score_one(shared_data, tmp_path):
    golds = [json.loads(line) for line in (shared_data / "gsm8k" / "test.jsonl").open()]
    write_jsonl(
        tmp_path / "gold.jsonl", ({"index": i, "response": row["answer"]} for i, row in enumerate(golds))
    )
    assert evaluate(tmp_path, shared_data / "gsm8k", tmp_path / "gold.jsonl") == 0
    out = tmp_path / "outputs" / "run_001" / "10_evaluation" / "predictions"
    metrics = json.loads((out / "metrics.json").read_text())
    assert (metrics["strict_accuracy"]["value"], metrics["accuracy"]["n"]) == (1.0, 1319)
    assert metrics["flexible_accuracy"]["value"] == 1.0
