"""The whole pipeline on the embedded models: the same work twice, once killed at many moments on the way."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from utils.common import REPO_ROOT, read_json, read_jsonl

pytestmark = pytest.mark.pipeline

# Small, yet nothing is degenerate: SFT learns the form of an answer, so that rewards differ within groups;
# SFT's validations (every 5) fall between resume points (every 4), its log is not in step with either; a
# rollout serves several optimizer steps; and every part of the reward that keeps a state has one.
SETTINGS = {
    "reward.intrinsic.normaliser": "mean_std",
    "reward.intrinsic.scope": "running",
    "reward.adaptive.enabled": "true",
    "sft.training.save_steps": "4",
    "sft.training.logging_steps": "3",
    "sft.validation.eval_steps": "5",
    "sft.max_steps": "16",
    "sft.learning_rate": "5e-3",
    "sft.lr_scheduler_type": "constant_with_warmup",
    "sft.warmup_steps": "2",
    "sft.per_device_train_batch_size": "16",
}
# In rollouts, of four optimizer steps each in PPO and two in GRPO.
OF_METHOD = {
    "ppo": {
        "ppo.num_rollouts": "5",
        "ppo.rollout_batch_size": "16",
        "ppo.training.save_steps": "2",
        "ppo.validation.eval_steps": "3",
        "ppo.warmup_steps": "0",
        "ppo.adaptive_kl": "true",
    },
    "grpo": {
        "grpo.num_rollouts": "5",
        "grpo.per_device_train_batch_size": "16",
        "grpo.steps_per_generation": "1",
        "grpo.training.save_steps": "2",
        "grpo.validation.eval_steps": "3",
        "grpo.warmup_steps": "0",
    },
}

STAGES = [
    "00_data_validation",
    "01_preprocessing",
    "02_rewards",
    "03_sft",
    "04_candidates",
    "05_ppo",
    "06_grpo",
    "10_evaluation/base",
    "10_evaluation/sft",
    "10_evaluation/ppo",
    "10_evaluation/grpo",
    "11_comparison",
]
TRAINED = ["03_sft/ckpt_sft", "05_ppo/ckpt_ppo", "06_grpo/ckpt_grpo"]

# Where the process group is killed, one after the other: as soon as the file is new.
KILLS = {
    "ppo": [
        "03_sft/valid_samples/step_0.json",  # before the first resume point
        "03_sft/valid_samples/step_10.json",  # between two
        "05_ppo/resume/checkpoint-8/trainer_state.json",  # right after the first
        "05_ppo/valid_samples/step_12.json",  # between two
        "05_ppo/resume/checkpoint-16",  # while one is being written
    ],
    "grpo": [
        "06_grpo/resume/checkpoint-4/trainer_state.json",
        "06_grpo/resume/checkpoint-8",
    ],
}
PATIENCE = 900  # seconds; one run takes a minute on a quiet machine


def driver(outputs: Path, run_id: str, method: str) -> list[str]:
    wanted = SETTINGS | OF_METHOD[method]
    settings = [word for key, value in wanted.items() for word in (f"--{key}", value)]
    script = [sys.executable, str(REPO_ROOT / "12_driver.py"), "--method", method, "--quick_test", *settings]
    return [*script, "--output_dir", str(outputs), "--run_id", run_id]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def run(outputs: Path, run_id: str, method: str) -> str:
    """The driver's standard output."""
    done = subprocess.run(
        driver(outputs, run_id, method), env=environment(), capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def kill_when_new(outputs: Path, run_id: str, method: str, name: str) -> None:
    """Start the driver and kill its process group as soon as file ``name`` of the run is new."""
    path, begin = outputs / run_id / name, time.time()
    process = subprocess.Popen(
        driver(outputs, run_id, method),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        while not (path.exists() and path.stat().st_mtime > begin):
            assert process.poll() is None, f"the driver ended before {name} was there"
            assert time.time() < begin + PATIENCE, f"no {name} after {PATIENCE} s"
            time.sleep(0.005)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> Path:
    """A folder with two runs of the same work: ``whole``, and ``broken``, which was killed seven times."""
    folder = tmp_path_factory.mktemp("outputs")
    for method, names in KILLS.items():
        run(folder, "whole", method)
        for name in names:
            kill_when_new(folder, "broken", method, name)
            assert not (folder / "broken" / name.split("/")[0] / "manifest.json").exists()
        run(folder, "broken", method)
    return folder


def manifest(outputs: Path, run_id: str, name: str) -> dict:
    """A manifest without its run id and without the commit, which may change under a developer's tests."""
    whole = read_json(outputs / run_id / name)
    assert whole.pop("run_id") == run_id
    for key in ("git_commit", "git_dirty"):
        whole["environment"].pop(key)
    return whole


@pytest.mark.parametrize("stage", STAGES)
def test_manifests_of_the_same_work_differ_in_their_run_id_alone(outputs, stage):
    name = f"{stage}/manifest.json"
    assert manifest(outputs, "whole", name) == manifest(outputs, "broken", name)


def test_every_stage_ran(outputs):
    for run_id in ("whole", "broken"):
        found = {path.parent.relative_to(outputs / run_id).as_posix() for path in manifests(outputs, run_id)}
        assert found == set(STAGES)


def manifests(outputs: Path, run_id: str) -> list[Path]:
    return list((outputs / run_id).rglob("manifest.json"))


@pytest.mark.parametrize("checkpoint", ["best", "final"])
@pytest.mark.parametrize("stage", TRAINED)
def test_killed_trainings_end_in_identical_weights(outputs, stage, checkpoint):
    """Adapters, and PPO's value head."""
    for name in ("adapter_model", "value_head"):
        whole, broken = (
            outputs / run_id / stage / checkpoint / f"{name}.safetensors" for run_id in ("whole", "broken")
        )
        if name == "adapter_model" or "ppo" in stage:
            assert whole.read_bytes() == broken.read_bytes()
        else:
            assert not whole.exists() and not broken.exists()


def test_everything_but_the_clock_is_the_same(outputs):
    """Logs, samples, curves and tables too: with them, the states of normalisers and coefficients."""
    whole, broken = (
        {
            path.relative_to(outputs / run_id).as_posix(): path.read_bytes()
            for path in (outputs / run_id).rglob("*")
            if path.is_file()
            and path.name not in (".lock", "runtime.json", "stage.log", "manifest.json", "run_manifest.json")
        }
        for run_id in ("whole", "broken")
    )
    assert set(whole) == set(broken)
    assert [name for name in whole if whole[name] != broken[name]] == []
    rows = read_jsonl(outputs / "whole" / "05_ppo" / "logs" / "metrics.jsonl")
    assert len({row["kl_coef"] for row in rows if "kl_coef" in row}) > 1  # a state that would show if lost
    assert all("weights/intrinsic" in row for row in rows if "reward" in row)


def test_the_killed_run_did_resume(outputs):
    """Otherwise the tests above would compare two uninterrupted runs."""
    points = {
        stage: re.findall(r"resuming from step (\d+)", (outputs / "broken" / stage / "stage.log").read_text())
        for stage in ("03_sft", "05_ppo", "06_grpo")
    }
    assert len(points["03_sft"]) == 1  # the first kill came before the first resume point
    assert len(points["05_ppo"]) == 3 and points["05_ppo"][0] == "8"
    assert len(points["06_grpo"]) == 2 and points["06_grpo"][0] == "4"
    kills = [name for names in KILLS.values() for name in names]
    for stage in points:
        sessions = read_json(outputs / "broken" / stage / "runtime.json")["sessions"]
        assert len(sessions) == len([name for name in kills if name.startswith(stage)]) + 1
        assert "resuming" not in (outputs / "whole" / stage / "stage.log").read_text()


def test_the_policies_did_change(outputs):
    """Otherwise identical weights would say little: rewards differ within groups, the policy moves."""
    start, ppo, grpo = (
        (outputs / "whole" / name / "adapter_model.safetensors").read_bytes()
        for name in ("03_sft/ckpt_sft/best", "05_ppo/ckpt_ppo/final", "06_grpo/ckpt_grpo/final")
    )
    assert len({start, ppo, grpo}) == 3
    rows = read_jsonl(outputs / "whole" / "06_grpo" / "logs" / "metrics.jsonl")
    assert max(row["reward_std"] for row in rows if "reward_std" in row) > 0.05


def test_candidates_carry_every_component_and_are_audited(outputs):
    """What a candidate is paid adds up; its intrinsic part is the weight times what the teacher says."""
    folder = outputs / "whole" / "04_candidates"
    candidates = [each for row in read_jsonl(folder / "candidates.jsonl") for each in row["candidates"]]
    for each in candidates:
        paid = dict(each["reward"])
        assert paid.pop("total") == pytest.approx(sum(paid.values()), abs=1e-5)
        assert each["raw"]["intrinsic"] < 0 and paid["intrinsic"] < 0
        assert (paid["exact_match"] == 1.0) == each["correct"]
    audit = read_json(folder / "reward_audit.json")
    assert audit["counts"]["candidates"] == len(candidates)
    assert {"intrinsic", "reasoning", "total"} <= set(audit["components"])
    cache = read_json(folder / "manifest.json")["metrics"]["teacher_cache"]
    assert 0 < cache["entries"] == cache["misses"] <= len(candidates)


def test_every_step_is_in_the_log(outputs):
    """A row of training metrics every 3 steps and at every resume point, and one of validation every 5."""
    rows = read_jsonl(outputs / "broken" / "03_sft" / "logs" / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == [3, 4, 6, 8, 9, 12, 15, 16]
    assert [row["step"] for row in rows if "val_reward" in row] == [0, 5, 10, 15, 16]


def test_outputs_are_plain_and_portable(outputs):
    """No pickles, no file without a known ending, and no machine's paths in any text."""
    endings = {".json", ".jsonl", ".csv", ".md", ".png", ".yaml", ".safetensors", ".log"}
    for path in (outputs / "broken").rglob("*"):
        if not path.is_file() or path.name in (".lock", "runtime.json", "stage.log"):
            continue
        assert path.suffix in endings, path
        if path.suffix not in (".png", ".safetensors"):
            text = path.read_text(encoding="utf-8")
            assert str(outputs) not in text and str(REPO_ROOT) not in text, path


def test_a_finished_run_is_up_to_date(outputs):
    before = {path: path.stat().st_mtime_ns for path in manifests(outputs, "broken")}
    lines = re.findall(r"^\[\d+/\d+\] (\S+): (.*)$", run(outputs, "broken", "grpo"), flags=re.MULTILINE)
    assert lines == [(stage, "up to date") for stage in STAGES if "ppo" not in stage]
    assert before == {path: path.stat().st_mtime_ns for path in manifests(outputs, "broken")}
