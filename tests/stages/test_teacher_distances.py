"""10 and the teacher: distances in its metrics, held-out levels, prompts without room, a wrong teacher."""

import json

import pytest

from tests.support.finished_runs import pretend_finished
from tests.support.scripts import execute_stage
from utils.data.records import Record
from utils.frame.files import write_jsonl


@pytest.fixture()
def run_dir(tmp_path):
    records = [
        Record(
            f"t-{i}", "sample", "q?", "cash 2001 5" + " ." * i, "target", "3.0", "add(1, 2)", level=1 + i % 2
        )
        for i in range(6)
    ]
    folder = tmp_path / "run_001"
    write_jsonl(folder / "01_preprocessing" / "test.jsonl", (r.to_json() for r in records))
    (folder / "01_preprocessing" / "held_out_levels.json").write_text('{"levels": [2]}')
    pretend_finished(folder / "01_preprocessing")
    pretend_finished(folder / "02_rewards", "reward_spec.yaml")
    return folder


def evaluate(run_dir, policy, teacher, *more):
    argv = ["--policy", "tiny", "--policy_ckpt", str(policy), "--outputs_root", str(run_dir.parent)]
    argv += ["--model.teacher_name_or_path", str(teacher), "--max_new_tokens", "8", *more]
    return execute_stage("10_evaluate.py", argv)


def test_stage_10_holds_a_policy_against_its_teacher(run_dir, tiny_models, capsys):
    assert evaluate(run_dir, tiny_models("llama"), tiny_models("llama")) == 0
    out = run_dir / "10_evaluation" / "tiny"
    metrics = json.loads((out / "metrics.json").read_text())
    for part in ("on_responses", "on_gold"):
        assert metrics["teacher"][part]["items"] == 6 and metrics["teacher"][part]["jsd"]["value"] < 1e-6
        assert metrics["teacher"][part]["top1_agreement"]["value"] == 1.0
    lengths = [json.loads(line)["tokens"] for line in (out / "samples" / "predictions.jsonl").open()]
    assert metrics["teacher"]["on_responses"]["tokens"] == sum(lengths)
    assert metrics["teacher"]["on_gold"]["tokens"] == 6 * 7  # "target", a token per byte, and the end
    assert "against the teacher on the gold text: agreement 100.0 %" in capsys.readouterr().out
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["metrics"]["teacher_agreement"] == 1.0
    assert len(manifest["inputs"]) == 5  # records, held-out levels, reward, policy and teacher


def test_stage_10_without_a_teacher_or_with_a_wrong_one(run_dir, tiny_models, capsys):
    assert evaluate(run_dir, tiny_models("llama"), "assets/teacher") == 2
    said = capsys.readouterr().err
    assert "tokenizers of student" in said and "--teacher_metrics false" in said
    assert evaluate(run_dir, tiny_models("llama"), "assets/nowhere") == 2
    assert "--teacher_metrics false" in capsys.readouterr().err
    assert evaluate(run_dir, tiny_models("llama"), "assets/nowhere", "--teacher_metrics", "false") == 0
    assert evaluate(run_dir, tiny_models("llama"), "", "--overwrite") == 0
    metrics = json.loads((run_dir / "10_evaluation" / "tiny" / "metrics.json").read_text())
    assert "teacher" not in metrics


def test_stage_10_tells_held_out_levels_apart(run_dir, tiny_models):
    assert evaluate(run_dir, tiny_models("llama"), "", "--max_items", "5") == 0
    metrics = json.loads((run_dir / "10_evaluation" / "tiny" / "metrics.json").read_text())
    assert metrics["held_out_levels"] == [2]
    assert (metrics["accuracy_trained_levels"]["n"], metrics["accuracy_held_out_levels"]["n"]) == (3, 2)
    # What is held out is part of the work: another choice of 01 makes the evaluation stale.
    (run_dir / "01_preprocessing" / "held_out_levels.json").write_text('{"levels": [1]}')
    pretend_finished(run_dir / "01_preprocessing")
    assert evaluate(run_dir, tiny_models("llama"), "", "--max_items", "5") == 2


def test_stage_10_counts_prompts_without_room_as_wrong(run_dir, tiny_models, capsys):
    # 256 positions; the prompts have 11, 13, … 21 bytes.
    assert evaluate(run_dir, tiny_models("llama"), tiny_models("llama"), "--max_new_tokens", "241") == 0
    metrics = json.loads((run_dir / "10_evaluation" / "tiny" / "metrics.json").read_text())
    assert metrics["missing"] == {"count": 3, "ids": ["t-3", "t-4", "t-5"]} and metrics["n"] == 6
    assert metrics["teacher"]["on_responses"]["left_out"] == 3 and metrics["teacher"]["on_gold"]["items"] == 6
    assert "3 prompts leave no room" in capsys.readouterr().out
    assert evaluate(run_dir, tiny_models("llama"), "", "--max_new_tokens", "250", "--overwrite") == 2
    assert "all 6 prompts" in capsys.readouterr().err
