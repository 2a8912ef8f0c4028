"""Trackers: the event file that TensorBoard would show, and what W&B and Trackio are told."""

import dataclasses
import importlib.util
import os
from types import SimpleNamespace

import pytest
from transformers import TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from utils.frame.config import load_tier
from utils.frame.files import UserError
from utils.models.settings import ModelConfig, TrainingSection
from utils.training.trackers import tracker_arguments

VARIABLES = ("WANDB_PROJECT", "WANDB_DIR", "WANDB_DISABLE_CODE", "TENSORBOARD_LOGGING_DIR")


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    """What a stage sets for its trackers ends with the test."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


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
