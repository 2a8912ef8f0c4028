"""A folder of several checkpoints: which there are, an evaluation of each, the table over steps, resuming."""

import csv
import json
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
import transformers.utils.hub
from safetensors.torch import load_file, save_file

from tests.support.evaluated_runs import count_batches, evaluate_run, prepare_run, results_of
from utils.evaluation import checkpoints
from utils.evaluation.policy_names import (
    Checkpoint,
    checkpoints_in,
    find_evaluations,
    policy_name,
    weights_of,
)
from utils.frame.files import UserError
from utils.models.loading import add_lora, load_policy, save_policy
from utils.models.settings import LoraSection, ModelSection


@pytest.fixture(scope="module")
def folder(tiny_models, tmp_path_factory):
    """06_grpo_task/ckpt_grpo of a run: two full models and an adapter, "best" a copy; and what is none."""
    folder = tmp_path_factory.mktemp("run") / "06_grpo_task" / "ckpt_grpo"
    shutil.copytree(tiny_models("llama"), folder.parents[1] / "03_sft" / "ckpt_sft" / "best")
    for name, scale in (("step_2", 1.0), ("step_10", 1.05)):
        shutil.copytree(tiny_models("llama"), folder / name)
        weights = load_file(folder / name / "model.safetensors")
        changed = {key: value * scale if "norm" in key else value for key, value in weights.items()}
        save_file(changed, folder / name / "model.safetensors", {"format": "pt"})
    model, tokenizer = load_policy(tiny_models("llama"), ModelSection(), trainable=True)
    model = add_lora(model, LoraSection(r=2), 0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.2, generator=torch.Generator().manual_seed(1))
    save_policy(model, tokenizer, folder / "final")
    shutil.copytree(folder / "step_10", folder / "best")
    (folder / ".hidden").mkdir()
    (folder / "logs").mkdir()
    return folder


def test_checkpoints_are_ordered_by_step(folder, tiny_models):
    assert checkpoints_in(folder) == [
        Checkpoint("step_2", 2, folder / "step_2"),
        Checkpoint("step_10", 10, folder / "step_10"),
        Checkpoint("best", None, folder / "best"),
        Checkpoint("final", None, folder / "final"),
    ]
    assert checkpoints_in(folder / "best") == checkpoints_in("owner/model") == []
    assert checkpoints_in(folder / "logs") == checkpoints_in(folder / "nowhere") == []
    assert weights_of(folder) == {"checkpoint": folder, "base_model": tiny_models("llama")}


@pytest.mark.parametrize("name,step", [("checkpoint-120", 120), ("global_step_7", 7), ("epoch_3", None)])
def test_names_that_other_programs_give(tmp_path, name, step):
    (tmp_path / name).mkdir()
    (tmp_path / name / "config.json").touch()
    assert checkpoints_in(tmp_path) == [Checkpoint(name, step, tmp_path / name)]


def test_names_of_policies_after_their_checkpoint(folder, tmp_path):
    assert policy_name("", False, str(folder)) == "grpo_task_checkpoints"
    assert policy_name("", False, str(folder / "step_2")) == "grpo_task_step_2"
    assert policy_name("mine", False, str(folder)) == "mine"
    assert policy_name("", False, "owner/Model-0.5B") == "Model-0.5B"
    (tmp_path / "my model").mkdir()
    assert policy_name("", False, str(tmp_path)) == tmp_path.name
    with pytest.raises(UserError, match="name it with --policy"):
        policy_name("", False, str(tmp_path / "my model"))


@pytest.fixture(scope="module")
def whole(folder, tiny_models, tmp_path_factory):
    run_dir = prepare_run(tmp_path_factory.mktemp("whole") / "run_001")
    assert evaluate_run(run_dir, folder, tiny_models("llama"), "--num_samples", "2") == 0
    return run_dir


def read_table(out):
    with open(out / "checkpoints.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_each_checkpoint_has_an_evaluation_of_its_own(whole, folder, tiny_models, tmp_path):
    out = whole / "10_evaluation" / "grpo_task_checkpoints"
    rows = read_table(out)
    assert [(row["checkpoint"], row["step"], row["folder"]) for row in rows] == [
        ("step_2", "2", "step_2"),
        ("step_10", "10", "step_10"),
        ("best", "", "step_10"),
        ("final", "", "final"),
    ]
    for row in rows:
        metrics = json.loads((out / row["folder"] / "metrics.json").read_text())
        assert float(row["accuracy"]) == metrics["accuracy"]["value"] and row["n"] == "6"
        assert float(row["pass_at_2_high"]) == metrics["samples"]["pass_at_k"]["2"]["ci95"][1]
    assert (out / "checkpoints.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == ["final", "step_10", "step_2"]
    assert (
        len(
            {
                (out / name / "samples" / "predictions.jsonl").read_bytes()
                for name in ("step_2", "step_10", "final")
            }
        )
        == 3
    )
    manifest = json.loads((out / "manifest.json").read_text())
    assert "10_evaluation/grpo_task_checkpoints/step_2/metrics.json" in manifest["outputs"]
    assert {"step_2/accuracy", "step_10/accuracy", "final/accuracy"} <= set(manifest["metrics"])
    # Alone, a checkpoint is given the same answers and numbers.
    alone = prepare_run(tmp_path / "run_001")
    assert evaluate_run(alone, folder / "final", tiny_models("llama"), "--num_samples", "2") == 0
    single = results_of(alone / "10_evaluation" / "grpo_task_final")
    several = results_of(out / "final")
    single.pop("manifest.json")
    for files in (single, several):
        files["metrics.json"] = json.loads(files["metrics.json"])
    assert several["metrics.json"].pop("policy") == "grpo_task_checkpoints/final"
    assert single["metrics.json"].pop("policy") == "grpo_task_final"
    assert single == several


def test_comparisons_pass_over_such_a_folder(whole):
    with pytest.raises(UserError, match="no finished evaluation"):
        find_evaluations(whole, [], [])


def test_a_stopped_evaluation_goes_on_with_the_next_checkpoint(
    whole, folder, tiny_models, tmp_path, monkeypatch
):
    expected = results_of(whole / "10_evaluation" / "grpo_task_checkpoints")
    per_checkpoint = 3 + 5
    run_dir = prepare_run(tmp_path / "run_001")
    with monkeypatch.context() as patched:
        count_batches(patched, per_checkpoint + 1)
        assert evaluate_run(run_dir, folder, tiny_models("llama"), "--num_samples", "2") == 130
    calls = count_batches(monkeypatch)
    assert evaluate_run(run_dir, folder, tiny_models("llama"), "--num_samples", "2") == 0
    assert results_of(run_dir / "10_evaluation" / "grpo_task_checkpoints") == expected
    assert len(calls) == 3 * per_checkpoint - (per_checkpoint + 1)


@pytest.mark.parametrize("planted", [False, True])
def test_a_damaged_evaluation_of_a_checkpoint_is_made_again(
    whole, folder, tiny_models, tmp_path, monkeypatch, planted
):
    """Of its answers, which have hashes of their own. ``planted``: what is wrong is a file too many, among
    results that are whole.
    """
    run_dir = prepare_run(tmp_path / "run_001")
    with monkeypatch.context() as patched:
        count_batches(patched, 9)
        assert evaluate_run(run_dir, folder, tiny_models("llama"), "--num_samples", "2") == 130
    out = run_dir / "10_evaluation" / "grpo_task_checkpoints"
    if planted:
        (out / "step_2" / "samples" / "tokens.json").write_text("{}")
    else:
        predictions = out / "step_2" / "samples" / "predictions.jsonl"
        text = predictions.read_text()
        predictions.write_text(text.replace('"correct": false', '"correct": true', 1))
        assert predictions.read_text() != text
    calls = count_batches(monkeypatch)
    assert evaluate_run(run_dir, folder, tiny_models("llama"), "--num_samples", "2") == 0
    assert results_of(out) == results_of(whole / "10_evaluation" / "grpo_task_checkpoints")
    assert len(calls) == 3 * 8 - 9
    said = (out / "stage.log").read_text()
    assert ("resume point step_2: samples/predictions.jsonl has changed" in said) is not planted


def test_one_that_is_stopped_after_the_last_checkpoint_has_the_same_manifest(
    folder, tiny_models, tmp_path, monkeypatch
):
    """What is said there of the chat template, too, although nothing is asked again."""
    steps = tmp_path / "06_grpo" / "ckpt_grpo"
    for name in ("step_2", "step_10"):
        shutil.copytree(folder / name, steps / name)
        (steps / name / "chat_template.jinja").write_text(
            "{% for m in messages %}{{ m.content }}{% endfor %}"
        )

    def killed(*args):
        raise KeyboardInterrupt

    def evaluate(run_dir):
        return evaluate_run(
            run_dir, steps, tiny_models("llama"), "--policy", "x", "--reference_metrics", "false"
        )

    runs = [prepare_run(tmp_path / place / "run_001") for place in ("undisturbed", "stopped")]
    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "plot_checkpoints", killed)
        assert evaluate(runs[1]) == 130
    calls = count_batches(monkeypatch)
    assert evaluate(runs[1]) == 0 and not calls
    assert evaluate(runs[0]) == 0
    found, expected = (results_of(run_dir / "10_evaluation" / "x") for run_dir in runs[::-1])
    assert (
        found == expected and "end_of_turn" in json.loads(found["manifest.json"])["metrics"]["chat_template"]
    )


def test_a_hub_name_is_evaluated_from_the_local_cache(tiny_models, tmp_path, monkeypatch):
    """As huggingface_hub keeps a downloaded model, links to blobs. Nothing is asked of the network."""
    cache = tmp_path / "cache"
    snapshot = cache / "models--owner--tiny" / "snapshots" / "abc"
    blobs = snapshot.parent.parent / "blobs"
    for made in (snapshot, blobs, blobs.parent / "refs"):
        made.mkdir(parents=True)
    (blobs.parent / "refs" / "main").write_text("abc")
    for number, path in enumerate(sorted(Path(tiny_models("llama")).iterdir())):
        shutil.copy(path, blobs / str(number))
        (snapshot / path.name).symlink_to(blobs / str(number))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(transformers.utils.hub.constants, "HF_HUB_CACHE", str(cache))
    runs = [prepare_run(tmp_path / "outputs" / name) for name in ("run_001", "run_002")]
    for run_dir, checkpoint in zip(runs, ("owner/tiny", tiny_models("llama")), strict=True):
        assert evaluate_run(run_dir, checkpoint, tiny_models("llama"), "--policy", "tiny") == 0
    hub, local = (results_of(run_dir / "10_evaluation" / "tiny") for run_dir in runs)
    manifests = [json.loads(files.pop("manifest.json")) for files in (hub, local)]
    assert hub == local
    assert manifests[0]["config"]["options"]["policy_ckpt"] == "owner/tiny"
