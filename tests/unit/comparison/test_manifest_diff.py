"""Differences between two runs' manifests: none missed, none invented, the consequential ones first."""

import copy
import json

import pytest

from utils.comparison.manifest_diff import (
    Difference,
    diff_as_json,
    diff_runs,
    folded,
    load_manifests,
    render_diff,
)
from utils.frame.files import UserError


def file(tag, rows=5):
    return {"sha256": tag * 8, "bytes": 10, "rows": rows}


RUN = {
    "01_preprocessing": {
        "schema_version": 1,
        "stage": "01_preprocessing",
        "variant": "",
        "run_id": "run_001",
        "seed": 0,
        "config": {"dataset": {"dataset": "sample", "max_test": None}, "quick_test": False},
        "inputs": {"datasets/sample/test.json": file("aa")},
        "outputs": {"01_preprocessing/test.jsonl": file("bb")},
        "metrics": {"test": 5},
        "environment": {"python": "3.11.7", "packages": {"torch": "2.13.0"}, "git_commit": "c0"},
    },
    "03_sft": {
        "schema_version": 1,
        "stage": "03_sft",
        "variant": "",
        "run_id": "run_001",
        "seed": 0,
        "config": {"algo": {"learning_rate": 1e-4, "betas": [0.9, 0.99]}},
        "inputs": {"01_preprocessing/test.jsonl": file("bb"), "assets/student": file("cc")},
        "outputs": {"03_sft/ckpt_sft/best/model.safetensors": file("dd")},
        "metrics": {},
        "environment": {"python": "3.11.7", "packages": {"torch": "2.13.0"}, "git_commit": "c0"},
    },
}


def other():
    run = copy.deepcopy(RUN)
    for manifest in run.values():
        manifest["run_id"] = "run_002"
    return run


def test_run_ids_are_no_difference():
    assert diff_runs(RUN, other()) == []
    assert render_diff([], "run_001", "run_002") == "run_001 and run_002: no difference (run ids aside)"


def test_every_kind_of_difference_in_order_of_consequence():
    run = other()
    run["03_sft"]["metrics"]["loss"] = 0.5
    run["03_sft"]["criteria"] = {"answers of valid form": {"passed": False}}
    run["03_sft"]["outputs"]["03_sft/ckpt_sft/best/model.safetensors"] = file("d2")
    run["03_sft"]["environment"]["packages"]["torch"] = "2.14.0"
    run["03_sft"]["config"]["algo"]["learning_rate"] = 2e-4
    run["03_sft"]["config"]["algo"]["betas"] = [0.9, 0.95]
    run["03_sft"]["seed"] = 7
    run["03_sft"]["inputs"]["01_preprocessing/test.jsonl"] = file("b2")
    run["03_sft"]["inputs"]["assets/student"] = file("c2")
    run["01_preprocessing"]["inputs"]["datasets/sample/test.json"] = file("a2", rows=6)
    run["01_preprocessing"]["schema_version"] = 1
    found = diff_runs(RUN, run)
    assert [(d.category, d.stage, d.key) for d in found] == [
        ("data", "01_preprocessing", "input datasets/sample/test.json"),
        ("data", "03_sft", "input assets/student"),
        ("data", "03_sft", "input 01_preprocessing/test.jsonl"),  # a consequence of the first
        ("config", "03_sft", "algo.betas"),
        ("config", "03_sft", "algo.learning_rate"),
        ("config", "03_sft", "seed"),
        ("code", "03_sft", "packages.torch"),
        ("outputs", "03_sft", "03_sft/ckpt_sft/best/model.safetensors"),
        ("outputs", "03_sft", "criterion answers of valid form.passed"),
        ("outputs", "03_sft", "metric loss"),
    ]
    text = render_diff(found, "run_001", "run_002")
    assert text.splitlines()[0] == "run_001 -> run_002: 10 differences"
    assert "sha256 aaaaaaaaaaaa, rows 5 -> sha256 a2a2a2a2a2a2, rows 6" in text
    assert "algo.learning_rate: 0.0001 -> 0.0002" in text
    assert [d.consequence for d in found] == [
        False,
        False,
        True,
        False,
        False,
        False,
        False,
        True,
        True,
        True,
    ]
    assert (
        "metric loss" not in text
        and "  03_sft: 1 input, 1 output, 1 metric, 1 criterion" in text.splitlines()
    )


def test_empty_and_null_values_are_told_from_absent_ones():
    run = other()
    run["01_preprocessing"]["config"]["dataset"]["max_test"] = 0
    del run["01_preprocessing"]["metrics"]["test"]
    run["03_sft"]["config"]["reward"] = {}
    found = {d.key: (d.a, d.b) for d in diff_runs(RUN, run)}
    assert found == {
        "dataset.max_test": (None, 0),
        "metric test": (5, "(absent)"),
        "reward": ("(absent)", {}),
    }


def test_a_stage_that_only_one_run_finished_comes_first():
    run = other()
    del run["03_sft"]
    run["01_preprocessing"]["seed"] = 1
    found = diff_runs(RUN, run)
    assert found[0] == Difference("stages", "03_sft", "", "finished", "(absent)")
    assert [d.category for d in found] == ["stages", "config"]


def test_what_several_stages_have_alike_is_one_line():
    run = other()
    for manifest in run.values():
        manifest["seed"] = 1
        manifest["environment"]["git_commit"] = "c1"
    run["03_sft"]["environment"]["python"] = "3.12"
    found = diff_runs(RUN, run)
    assert len(found) == 5
    assert [(group.key, group.stages) for group in folded(found)] == [
        ("seed", ["01_preprocessing", "03_sft"]),
        ("git_commit", ["01_preprocessing", "03_sft"]),
        ("python", ["03_sft"]),
    ]
    run["03_sft"]["seed"] = 2  # not alike any more
    seeds = [group for group in folded(diff_runs(RUN, run)) if group.key == "seed"]
    assert [(group.b, group.stages) for group in seeds] == [(1, ["01_preprocessing"]), (2, ["03_sft"])]


def test_one_and_true_are_not_alike():
    run = other()
    run["01_preprocessing"]["config"] = {"x": 1}
    run["03_sft"]["config"] = {"x": True}
    groups = [group for group in folded(diff_runs(RUN, run)) if group.key == "x"]
    assert [(group.b, group.stages) for group in groups] == [
        (1, ["01_preprocessing"]),
        (True, ["03_sft"]),
    ]


def test_an_output_that_nothing_explains_is_shown_and_one_that_follows_is_counted():
    run = other()
    run["03_sft"]["outputs"]["03_sft/ckpt_sft/best/model.safetensors"] = file("d2")
    (group,) = folded(diff_runs(RUN, run))
    assert (group.category, group.key) == ("outputs", "03_sft/ckpt_sft/best/model.safetensors")
    assert "outputs, though nothing else of their stage" in render_diff(diff_runs(RUN, run), "a", "b")
    run["03_sft"]["inputs"]["01_preprocessing/test.jsonl"] = file("b2")
    run["01_preprocessing"]["outputs"]["01_preprocessing/test.jsonl"] = file("b2")
    # Now SFT's output follows from its input, and only that input's writer is without an explanation.
    assert [group.key for group in folded(diff_runs(RUN, run))] == ["01_preprocessing/test.jsonl"]


def test_configuration_comes_by_its_effect_on_results():
    run = other()
    keys = ["algo.learning_rate", "dataset.max_test", "model.model.torch_dtype", "model.training.optim"]
    harmless = ["model.metadata.description", "model.training.save_steps", "model.vllm.use_vllm"]
    for key in (*keys, *harmless):
        tier, *path, last = key.split(".")
        place = run["01_preprocessing" if tier == "dataset" else "03_sft"]["config"].setdefault(tier, {})
        for part in path:
            place = place.setdefault(part, {})
        place[last] = "new"
    run["03_sft"]["config"] |= {"options": {"later": []}, "quick_test": True}
    run["03_sft"]["seed"] = 4
    assert [d.key for d in diff_runs(RUN, run)] == [
        "quick_test",
        "dataset.max_test",
        "algo.learning_rate",
        "model.model.torch_dtype",
        "model.training.optim",
        "seed",
        "options.later",  # absent there, empty here
        "model.metadata.description",
        "model.training.save_steps",
        "model.vllm.use_vllm",
    ]


def test_stages_that_one_run_lacks_are_one_line_for_each_run():
    run = other()
    run["05_ppo"] = run.pop("03_sft")
    lines = render_diff(diff_runs(RUN, run), "x", "y").splitlines()
    assert lines == ["x -> y: 2 differences", "stages", "  only in x: 03_sft", "  only in y: 05_ppo"]


def test_a_consequence_says_how_far_the_headline_moved():
    a, b = (
        {"10_evaluation/sft": {"seed": seed, "metrics": {"accuracy": accuracy, "n": 4, "x": accuracy}}}
        for seed, accuracy in ((0, 0.5), (1, 0.25))
    )
    text = render_diff(diff_runs(a, b), "a", "b")
    assert "  10_evaluation/sft: accuracy 50.0 % -> 25.0 % (-25.0 points), 2 metrics" in text


def test_difference_is_antisymmetric():
    run = other()
    run["03_sft"]["config"]["algo"]["learning_rate"] = 2e-4
    there, back = diff_runs(RUN, run), diff_runs(run, RUN)
    assert [(d.key, d.a, d.b) for d in there] == [(d.key, d.b, d.a) for d in back]


def test_machine_readable_form_is_json():
    run = other()
    run["03_sft"]["seed"] = 3
    document = json.loads(json.dumps(diff_as_json(diff_runs(RUN, run), "run_001", "run_002")))
    seed = {"category": "config", "key": "seed", "a": 0, "b": 3}
    assert document == {
        "schema_version": 1,
        "a": "run_001",
        "b": "run_002",
        "differences": [seed | {"stage": "03_sft", "consequence": False}],
        "groups": [seed | {"stages": ["03_sft"]}],
    }


def test_manifests_are_found_at_both_depths(tmp_path):
    for stage in ("01_preprocessing", "10_evaluation/sft"):
        (tmp_path / stage).mkdir(parents=True)
        (tmp_path / stage / "manifest.json").write_text(json.dumps({"stage": stage, "outputs": {}}))
    (tmp_path / "run_manifest.json").write_text("{}")
    assert sorted(load_manifests(tmp_path)) == ["01_preprocessing", "10_evaluation/sft"]


def test_no_run_and_no_finished_stage(tmp_path):
    with pytest.raises(UserError, match="no run at"):
        load_manifests(tmp_path / "run_009")
    with pytest.raises(UserError, match="no finished stage"):
        load_manifests(tmp_path)
