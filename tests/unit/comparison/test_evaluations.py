"""Which evaluations stage 11 compares: run ids, folders, globs and single metrics.json files, none lost."""

import csv
import json
import shutil
from types import SimpleNamespace

import pytest

from tests.support.finished_runs import write_evaluation, write_methods, write_stage
from tests.support.scripts import execute_stage
from utils.comparison.evaluations import (
    audit_files,
    chosen_evaluations,
    evaluated_in,
    expand_runs,
    input_files,
    sample_files,
)
from utils.comparison.lineage import trained_policies, training_logs
from utils.frame.files import UserError, write_json, write_jsonl

POLICIES = ("sft", "grpo")


@pytest.fixture()
def outputs(tmp_path):
    for seed in range(2):
        write_methods(tmp_path / "outputs" / f"s{seed}", seed, policies=POLICIES)
    return tmp_path / "outputs"


def outside(folder, policy="theirs", right=33):
    """An evaluation that lies in no run: its metrics.json."""
    folder.mkdir(parents=True)
    write_evaluation(folder, policy, right)
    return folder / "metrics.json"


def chosen(run_dir, runs=(), policies=(), metrics=()):
    options = SimpleNamespace(runs=runs, policies=policies, metrics=metrics, results=())
    return chosen_evaluations(run_dir, options)


def refused(*args, **kwargs):
    with pytest.raises(UserError) as error:
        chosen(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def compare(outputs, *more):
    argv = ["--outputs_root", str(outputs), "--run_id", "c", *more]
    return execute_stage("11_compare_runs.py", argv)


def test_paths_are_plain_arguments(outputs, unrendered):
    """As a shell expands outputs/run_*/10_evaluation/*/metrics.json; several after --metrics; runs."""
    files = sorted(map(str, outputs.glob("s*/10_evaluation/*/metrics.json")))
    names = ["s0/sft", "s1/sft", "s0/grpo", "s1/grpo"]
    runs = [f"{outputs}/s0", f"{outputs}/s1"]
    for argv in (files, ["--metrics", *files], ["--metrics", ",".join(files)], runs):
        assert compare(outputs, *argv, "--overwrite") == 0
        manifest = json.loads((outputs / "c" / "11_comparison" / "manifest.json").read_text())
        assert sorted(manifest["metrics"]) == sorted(names)
    assert compare(outputs, "--policies", "sft", "grpo", "--runs", "s0", "s1", "--overwrite") == 0


def test_what_takes_long_has_a_bar(outputs, unrendered, bars):
    assert compare(outputs, "--runs", "s0") == 0
    assert bars[:3] == ["comparing", "sections", "figures and tables"]
    assert "packing answers" in bars


def test_names_are_the_policies_of_one_run_and_carry_the_run_of_several(outputs):
    assert list(chosen(outputs / "s0")) == ["sft", "grpo"]
    assert list(chosen(outputs / "c", ["s1"])) == ["sft", "grpo"]
    found = chosen(outputs / "c", ["s0", "s1"], ["grpo"])
    assert found == {f"s{i}/grpo": outputs / f"s{i}" / "10_evaluation" / "grpo" for i in range(2)}


def test_a_glob_stands_for_the_runs_that_evaluated_something(outputs):
    (outputs / "s9" / "11_comparison").mkdir(parents=True)
    assert expand_runs(outputs / "c", ["s?"]) == ["s0", "s1"]
    assert expand_runs(outputs / "c", ["s1", "s[0-9]"]) == ["s1", "s0"]
    assert expand_runs(outputs / "c", [f"{outputs}/s*"]) == ["s0", "s1"]
    assert list(chosen(outputs / "c", ["s*"])) == list(chosen(outputs / "c", ["s0", "s1"]))
    assert "--runs 'x*' matches no run with a finished evaluation" in refused(outputs / "c", ["x*"])


def test_runs_of_one_name_in_two_places_are_both_compared(outputs, tmp_path):
    shutil.copytree(outputs / "s0", tmp_path / "elsewhere" / "s0")
    found = chosen(outputs / "c", ["s0", str(tmp_path / "elsewhere" / "s0")])
    assert list(found) == ["elsewhere/s0/sft", "outputs/s0/sft", "elsewhere/s0/grpo", "outputs/s0/grpo"]
    logs = training_logs(trained_policies({name: [folder] for name, folder in found.items()}))
    assert len(logs) == 4 == len(set(logs.values()))
    assert "is named twice" in refused(outputs / "c", ["s0", str(outputs / "s0")])


def test_metrics_files_are_compared_alone_or_beside_runs(outputs, tmp_path):
    theirs = outside(tmp_path / "theirs")
    mine = outputs / "s0" / "10_evaluation" / "sft"
    assert list(chosen(outputs / "c", metrics=[str(theirs), str(mine)])) == ["sft", "theirs"]
    found = chosen(outputs / "s1", policies=["grpo"], metrics=[str(theirs), str(mine / "metrics.json")])
    assert list(found) == ["sft", "grpo", "theirs"] and found["grpo"].parents[1] == outputs / "s1"
    assert list(chosen(outputs / "c", ["s0", "s1"], ["sft"], [str(theirs)])) == [
        *("s0/sft", "s1/sft"),
        f"{tmp_path.name}/theirs",
    ]
    assert "is named twice" in refused(outputs / "s0", policies=["sft"], metrics=[str(mine)])


def test_a_glob_of_metrics_files_takes_their_folders_names(outputs, tmp_path):
    for step in (160, 80, 20):
        outside(tmp_path / "grpo_checkpoints" / f"step_{step}")
    found = chosen(outputs / "c", metrics=[f"{tmp_path}/grpo_checkpoints/*/metrics.json"])
    assert list(found) == ["step_20", "step_80", "step_160"]
    outside(tmp_path / "ppo_checkpoints" / "step_80")
    found = chosen(outputs / "c", metrics=[f"{tmp_path}/*_checkpoints/*"])
    assert set(found) == {"step_20", "step_160", "grpo_checkpoints/step_80", "ppo_checkpoints/step_80"}


def test_a_relative_glob_is_taken_from_the_working_directory(outputs, tmp_path, monkeypatch):
    outside(tmp_path / "theirs")
    monkeypatch.chdir(tmp_path)
    assert list(chosen(outputs / "c", metrics=["the*"])) == ["theirs"]
    assert expand_runs(outputs.parent / "nowhere" / "c", ["outputs/s*"]) == [
        str(outputs / f"s{i}") for i in range(2)
    ]


@pytest.mark.parametrize(
    "metrics,message",
    [
        ("{}/none/metrics.json", "there is no metrics.json"),
        ("{}/theirs/breakdown.csv", "give a metrics.json as 10_evaluate.py writes it"),
        ("{}/*.json", "matches nothing"),
        ("{}/bare", "there is no breakdown.csv"),
    ],
)
def test_metrics_files_that_cannot_be_compared(outputs, tmp_path, metrics, message):
    outside(tmp_path / "theirs")
    (tmp_path / "bare").mkdir()
    write_json(tmp_path / "bare" / "metrics.json", {})
    assert message in refused(outputs / "c", metrics=[metrics.format(tmp_path)])


def test_a_checkpoint_among_several_belongs_to_its_run(outputs):
    run = outputs / "s0"
    folder = run / "10_evaluation" / "grpo_checkpoints"
    write_stage(
        run,
        "10_evaluation/grpo_checkpoints",
        0,
        inputs=["01_preprocessing/test.jsonl", ("06_grpo/ckpt_grpo", "x")],
        write=lambda out: outside(out / "step_8"),
    )
    assert evaluated_in(folder / "step_8") == (run, "10_evaluation/grpo_checkpoints")
    assert evaluated_in(folder.parent / "grpo") == (run, "10_evaluation/grpo")
    (each,) = trained_policies({"step_8": [folder / "step_8"]})["step_8"]
    assert (each.training, each.checkpoint, each.seed) == ("06_grpo", "step_8", 0)
    # The folder above has no metrics.json of its own, and is no policy to compare.
    assert list(chosen(run)) == ["sft", "grpo"]


def test_answers_tokens_and_audits_are_inputs_where_they_are(outputs):
    folder = outputs / "s0" / "10_evaluation" / "sft"
    assert sample_files(folder) == []
    write_jsonl(folder / "samples" / "predictions.jsonl", [])
    assert list(input_files({"sft": folder})) == [
        *("sft:metrics.json", "sft:breakdown.csv", "sft:predictions.jsonl")
    ]
    write_jsonl(folder / "samples" / "tokens.jsonl", [])
    assert [path.name for path in sample_files(folder)] == ["predictions.jsonl", "tokens.jsonl"]
    assert audit_files([folder]) == {}
    write_stage(
        outputs / "s0",
        "02_rewards_audit",
        0,
        write=lambda out: write_json(out / "reward_audit.json", {}),
    )
    assert audit_files([folder]) == {"s0": outputs / "s0" / "02_rewards_audit" / "reward_audit.json"}


@pytest.mark.usefixtures("unrendered")
def test_stage_11_compares_what_lies_in_no_run(outputs, tmp_path, capsys):
    theirs = outside(tmp_path / "theirs", right=50)
    argv = ["--metrics", f"{theirs},{outputs}/s0/10_evaluation/s*"]
    assert compare(outputs, *argv) == 0
    said = capsys.readouterr().out
    assert "theirs answers more items correctly than sft" in said
    out = outputs / "c" / "11_comparison"
    with open(out / "summary.csv", newline="") as file:
        assert [row["policy"] for row in csv.DictReader(file)] == ["sft", "theirs"]
    assert "Not shown: theirs, which was not trained in its run." in (out / "report.md").read_text()
    manifest = (out / "manifest.json").read_text()
    assert str(tmp_path) not in manifest and "external/" in manifest
    changes = [json.loads(line) for line in (out / "changes.jsonl").read_text().splitlines()]
    assert len(changes) == 30 and {row["change"] for row in changes} == {"fixed"}
    assert changes[0] == {"a": "sft", "b": "theirs", "id": "test-20", "change": "fixed"}


@pytest.mark.usefixtures("unrendered")
def test_metrics_files_are_no_seeds(outputs, tmp_path, capsys):
    theirs = outside(tmp_path / "theirs")
    assert compare(outputs, "--by_seed", "--runs", "s*", "--metrics", str(theirs)) == 2
    assert "leave out --metrics, or --by_seed" in capsys.readouterr().err
    assert compare(outputs, "--by_seed", "--runs", "s*") == 0
    assert "over seeds 0 (s0), 1 (s1)" in capsys.readouterr().out
    rows = (outputs / "c" / "11_comparison" / "changes.jsonl").read_text().splitlines()
    # SFT answers the first 20 + seed items, GRPO the first 40 + seed.
    assert len(rows) == 40 and json.loads(rows[20]) == {
        **{"a": "sft", "b": "grpo", "seed": 1, "id": "test-21", "change": "fixed"}
    }
