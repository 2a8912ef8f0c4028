"""Trackers: the event file that TensorBoard would show, and what W&B and Trackio are told."""

import dataclasses
import importlib.util
import os
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from tests.support.scripts import execute_stage
from utils.frame.config import load_tier
from utils.frame.files import UserError, read_json, read_jsonl
from utils.models.settings import ModelConfig, TrainingSection
from utils.training.trackers import tracker_arguments

VARIABLES = ("WANDB_PROJECT", "WANDB_DIR", "WANDB_DISABLE_CODE", "TENSORBOARD_LOGGING_DIR")


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    """What a stage sets for its trackers ends with the test."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same short SFT without and with TensorBoard: the folder of each."""
    outputs = tmp_path_factory.mktemp("outputs")
    for run_id, tracker in (("plain", "none"), ("tracked", "tensorboard")):
        words = ["--quick_test", "--output_dir", str(outputs), "--run_id", run_id]
        assert execute_stage("01_prepare_dataset.py", words) == 0
        assert execute_stage("02_build_rewards.py", words) == 0
        words += ["--validation.num_items", "1", "--report_to", tracker]
        assert execute_stage("03_sft_train.py", words) == 0
    return outputs / "plain" / "03_sft", outputs / "tracked" / "03_sft"


def test_the_event_file_holds_what_the_log_holds(runs):
    _, tracked = runs
    (file,) = (tracked / "logs" / "tensorboard").iterdir()
    events = EventAccumulator(str(file)).Reload()
    seen = {
        (tag, event.step): event.value for tag in events.Tags()["scalars"] for event in events.Scalars(tag)
    }
    # Transformers names what is no evaluation "train/<key>".
    rows = read_jsonl(tracked / "logs" / "metrics.jsonl")
    logged = {
        (f"train/{key}", row["step"]): value
        for row in rows
        for key, value in row.items()
        if key not in ("step", "sampled_completions") and isinstance(value, int | float)
    }
    assert {"train/loss", "train/val_reward", "train/grad_norm"} <= {tag for tag, _ in logged}
    for place, value in logged.items():
        assert seen[place] == pytest.approx(value, rel=1e-6), place


def test_a_tracker_changes_nothing_but_its_own_folder(runs):
    plain, tracked = (read_json(folder / "manifest.json") for folder in runs)
    assert plain["outputs"] == tracked["outputs"]
    assert not any("tensorboard" in name for name in tracked["outputs"])
    assert plain["metrics"] == tracked["metrics"]
    assert tracked["config"]["model"]["training"]["report_to"] == ["tensorboard"]


def context(tmp_path, *names: str) -> SimpleNamespace:
    model = ModelConfig(training=TrainingSection(report_to=list(names)))
    out = tmp_path / "run_001" / "06_grpo_task"
    return SimpleNamespace(config=SimpleNamespace(model=model), run_id="run_001", run_dir=out.parent, out=out)


def test_every_tracker_is_one_that_transformers_knows(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setenv("WANDB_MODE", "offline")
    names = ["tensorboard", "wandb", "trackio"]
    assert set(names) <= set(INTEGRATION_TO_CALLBACK)
    given = tracker_arguments(context(tmp_path, *names))
    assert given == {"report_to": names, "run_name": "run_001/06_grpo_task", "project": "bellman-bench"}
    assert set(given) <= {field.name for field in dataclasses.fields(TrainingArguments)}
    assert os.environ["WANDB_DIR"] == str(tmp_path / "run_001" / "06_grpo_task" / "logs")
    assert (tmp_path / "run_001" / "06_grpo_task" / "logs").is_dir()
    assert os.environ["WANDB_PROJECT"] == "bellman-bench"


def test_no_tracker_sets_nothing(tmp_path):
    for names in ((), ("none",)):
        assert tracker_arguments(context(tmp_path, *names)) == {"report_to": "none"}
    assert not any(name in os.environ for name in VARIABLES)
    assert not (tmp_path / "run_001").exists()


def test_what_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="--report_to trackio: not installed: pip install trackio"):
        tracker_arguments(context(tmp_path, "trackio"))


def test_wandb_needs_a_key_before_training_begins(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="put WANDB_API_KEY into .env"):
        tracker_arguments(context(tmp_path, "wandb"))
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password 0123456789abcdef\n")
    assert tracker_arguments(context(tmp_path, "wandb"))["report_to"] == ["wandb"]
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    with pytest.raises(UserError, match="no key"):
        tracker_arguments(context(tmp_path, "wandb"))
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    assert tracker_arguments(context(tmp_path, "wandb"))["report_to"] == ["wandb"]


@pytest.mark.parametrize(
    ("value", "says"),
    [("[mlflow]", "must be one of tensorboard, wandb, trackio, none"), ("[none, wandb]", "not both")],
)
def test_an_unknown_tracker_is_refused(tmp_path, value, says):
    (tmp_path / "m.yaml").write_text(f"training:\n  report_to: {value}\n")
    with pytest.raises(UserError, match=says):
        load_tier(ModelConfig, tmp_path / "m.yaml")
