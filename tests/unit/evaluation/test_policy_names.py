"""Which weights a policy's name stands for."""

import json
from pathlib import Path

import pytest

from utils.evaluation.policy_names import checkpoint_of, policy_name
from utils.frame.files import REPO_ROOT, UserError
from utils.models.settings import ModelConfig, ModelSection
from utils.training.inputs import checkpoint_at, model_inputs

RUN = Path("/outputs/run_001")
MODEL = ModelConfig(model=ModelSection(name_or_path="assets/student", teacher_name_or_path="owner/teacher"))


@pytest.mark.parametrize(
    "policy,expected",
    [
        ("base", REPO_ROOT / "assets" / "student"),
        ("teacher", "owner/teacher"),
        ("sft", RUN / "03_sft" / "ckpt_sft" / "best"),
        ("sft_teacher", RUN / "03_sft_teacher" / "ckpt_sft" / "best"),
        ("distill_sec", RUN / "03_distill_sec" / "ckpt_distill" / "best"),
        ("ppo_intrinsic", RUN / "05_ppo_intrinsic" / "ckpt_ppo" / "best"),
        ("grpo", RUN / "06_grpo" / "ckpt_grpo" / "best"),
        ("rloo", RUN / "07_rloo" / "ckpt_rloo" / "best"),
        ("dpo", RUN / "09_dpo" / "ckpt_dpo" / "best"),
    ],
)
def test_policies_of_a_run(policy, expected):
    assert checkpoint_of(policy, "", MODEL, RUN) == expected


def test_a_given_checkpoint_wins_whatever_the_name(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert checkpoint_of("mine", str(tmp_path), MODEL, RUN) == tmp_path
    assert checkpoint_of("base", "owner/model", MODEL, RUN) == "owner/model"
    # What looks like a local path stays one, so that its absence is reported and no hub is asked.
    assert (
        checkpoint_of("mine", "outputs/run_001/none", MODEL, RUN)
        == REPO_ROOT / "outputs" / "run_001" / "none"
    )


def test_a_stage_folder_means_its_best_checkpoint(tmp_path):
    """In 10, and where a training starts; a folder of all checkpoints is one by one in 10 alone."""
    run = tmp_path / "run_002"
    for name in ("best", "step_2"):
        folder = run / "03_sft" / "ckpt_sft" / name
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text("{}")
    best = run / "03_sft" / "ckpt_sft" / "best"
    assert checkpoint_of("mine", str(run / "03_sft"), MODEL, RUN) == best
    assert policy_name("", outside=False, checkpoint=str(run / "03_sft")) == "sft_best"
    assert checkpoint_of("mine", str(run / "03_sft" / "ckpt_sft"), MODEL, RUN) == best.parent
    assert (
        checkpoint_at(str(run / "03_sft"))
        == checkpoint_at(str(best.parent))
        == checkpoint_at(str(best))
        == best
    )
    with pytest.raises(UserError, match="is a run: name the stage .*run_002/03_sft"):
        checkpoint_at(str(run))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no checkpoint"):
        checkpoint_at(str(tmp_path / "empty"))


def test_base_is_the_configured_model():
    assert checkpoint_of("mine", "base", MODEL, RUN) == REPO_ROOT / "assets" / "student"


@pytest.mark.parametrize("policy", ["best", "grpo2", "student"])
def test_a_policy_that_no_stage_trains(policy):
    with pytest.raises(UserError, match="is none of base, sft, teacher"):
        checkpoint_of(policy, "", MODEL, RUN)


def test_names_are_folder_names():
    assert (policy_name("", outside=False), policy_name("", outside=True)) == ("sft", "predictions")
    for name in ("../up", "a/b", ".hidden", "a b", "-x"):
        with pytest.raises(UserError, match="must be letters"):
            policy_name(name, outside=False)


def test_an_adapter_is_read_with_its_base(tmp_path):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    for folder in (base, adapter):
        folder.mkdir()
    assert model_inputs(adapter) == {"checkpoint": adapter}
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    assert model_inputs(adapter) == {"checkpoint": adapter, "base_model": base}
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "owner/model"}))
    assert model_inputs(adapter) == {"checkpoint": adapter}
    assert model_inputs("owner/model") == {}
