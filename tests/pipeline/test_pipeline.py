"""Every method over two seeds on the embedded models: the same work twice, once killed at many moments."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.scripts import InThisProcess
from utils.frame.files import REPO_ROOT, read_json, read_jsonl
from utils.frame.stage_plan import load_script

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
    # In rollouts of 16 completions, of four optimizer steps each in PPO and two in the others.
    "distill.per_device_train_batch_size": "16",
    "distill.steps_per_generation": "1",
    "distill.training.save_steps": "2",
    "distill.validation.eval_steps": "3",
    "distill.warmup_steps": "0",
    "ppo.rollout_batch_size": "16",
    "ppo.training.save_steps": "2",
    "ppo.validation.eval_steps": "3",
    "ppo.warmup_steps": "0",
    "ppo.adaptive_kl": "true",
    "grpo.per_device_train_batch_size": "16",
    "grpo.steps_per_generation": "1",
    "grpo.training.save_steps": "2",
    "grpo.validation.eval_steps": "3",
    "grpo.warmup_steps": "0",
    "rloo.per_device_train_batch_size": "16",
    "rloo.steps_per_generation": "1",
    "rloo.training.save_steps": "2",
    "rloo.validation.eval_steps": "3",
    "rloo.warmup_steps": "0",
    "dpo.training.save_steps": "2",
    "dpo.validation.eval_steps": "3",
    "dpo.max_steps": "5",
    "dpo.warmup_steps": "0",
}
COMPLETIONS = 80  # of each method
SEEDS = ("0", "1")
RUNS = [f"run_001_seed_{seed}" for seed in SEEDS]

STAGES = [
    "00_data_validation",
    "01_preprocessing",
    "02_rewards",
    "03_sft",
    "03_distill",
    "04_candidates",
    "05_ppo",
    "06_grpo",
    "07_rloo",
    "08_preferences",
    "09_dpo",
    *(f"10_evaluation/{policy}" for policy in ("base", "sft", "distill", "ppo", "grpo", "rloo", "dpo")),
    "11_comparison",
]
EVERY = [f"{run}/{stage}" for run in RUNS for stage in STAGES] + ["run_001/11_comparison"]
TRAINED = [
    "03_sft/ckpt_sft",
    "03_distill/ckpt_distill",
    "05_ppo/ckpt_ppo",
    "06_grpo/ckpt_grpo",
    "07_rloo/ckpt_rloo",
    "09_dpo/ckpt_dpo",
]

# Where the process group, driver and step, is killed, one after the other: as soon as the file is new. (Each
# training by itself is killed at every turn in tests/stages/test_resume.py.)
KILLS = [
    "run_001_seed_0/03_sft/valid_samples/step_10.json",  # between two resume points
    "run_001_seed_0/03_distill/resume/checkpoint-4/hashes.json",  # right after the first
    "run_001_seed_0/05_ppo/resume/checkpoint-16",  # while one is being written
    "run_001_seed_0/07_rloo/valid_samples/step_6.json",
    "run_001_seed_1/06_grpo/resume/checkpoint-8",
    "run_001_seed_1/10_evaluation/grpo/samples/predictions.jsonl",  # while answers are made
]
# What the killed execution does again, by run: each stage at least once. The rest is there before it begins.
REDONE = {
    "run_001_seed_0": ["00_data_validation", "01_preprocessing", "02_rewards", "03_sft", "03_distill"]
    + ["05_ppo", "07_rloo", "09_dpo", "distill", "ppo", "rloo", "dpo", "11_comparison"],
    "run_001_seed_1": ["04_candidates", "06_grpo", "08_preferences", "base", "sft", "grpo", "11_comparison"],
}
PATIENCE = 1800  # seconds; one execution takes some minutes on a quiet machine


def driver(outputs: Path, *options: str, settings: dict[str, str] = SETTINGS) -> list[str]:
    """The command; ``options`` come last, and count where they are given twice."""
    words = [word for key, value in settings.items() for word in (f"--{key}", value)]
    script = [sys.executable, str(REPO_ROOT / "12_driver.py"), "--quick_test", "--outputs_root", str(outputs)]
    methods = ["--method", "all", "--seeds", *SEEDS, "--completions", str(COMPLETIONS)]
    return [*script, *methods, *words, *options]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def run(command: list[str], code: int = 0) -> subprocess.CompletedProcess[str]:
    """The ended process; its exit code is ``code``."""
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-2000:]
    return done


def kill_when_new(outputs: Path, name: str) -> None:
    """Start the driver, one step at a time, and kill its process group as soon as file ``name`` is new."""
    path, begin = outputs / name, time.time()
    process = subprocess.Popen(
        driver(outputs, "--jobs", "1"),
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
    """``whole``, and ``broken``, killed several times and ended by two jobs: the same runs.

    ``whole`` is done within this process, which has imported everything; ``broken`` by a process a step. It
    does ``REDONE`` again and takes the rest, copied before, for up to date: it rests on the same.
    """
    folder = tmp_path_factory.mktemp("outputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("utils.driver.execution.Child", InThisProcess)
        assert load_script("12_driver.py").main(driver(folder / "whole", "--jobs", "1")[2:]) == 0
    for name, redone in REDONE.items():
        left_out = shutil.ignore_patterns(*redone)
        shutil.copytree(folder / "whole" / name, folder / "broken" / name, ignore=left_out)
    for name in KILLS:
        kill_when_new(folder / "broken", name)
        stage = next(stage for stage in EVERY if name.startswith(f"{stage}/"))
        assert not (folder / "broken" / stage / "manifest.json").exists()
    run(driver(folder / "broken", "--jobs", "2"))
    return folder


def manifest(outputs: Path, execution: str, name: str) -> dict:
    """A manifest without the commit, which may change under a developer's tests, and the checksum with it."""
    whole = read_json(outputs / execution / name / "manifest.json")
    del whole["checksum"]
    for key in ("git_commit", "git_dirty"):
        whole["environment"].pop(key)
    return whole


def manifests(outputs: Path, execution: str) -> list[Path]:
    return list((outputs / execution).rglob("manifest.json"))


@pytest.mark.parametrize("stage", EVERY)
def test_manifests_of_the_same_work_are_the_same(outputs, stage):
    assert manifest(outputs, "whole", stage) == manifest(outputs, "broken", stage)


def test_every_stage_ran(outputs):
    for execution in ("whole", "broken"):
        found = {
            path.parent.relative_to(outputs / execution).as_posix() for path in manifests(outputs, execution)
        }
        assert found == set(EVERY)


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("checkpoint", ["best", "final"])
@pytest.mark.parametrize("stage", TRAINED)
def test_killed_trainings_end_in_identical_weights(outputs, run, stage, checkpoint):
    whole, broken = (
        outputs / execution / run / stage / checkpoint / "adapter_model.safetensors"
        for execution in ("whole", "broken")
    )
    assert whole.read_bytes() == broken.read_bytes()


def test_everything_but_the_clock_is_the_same(outputs):
    """Logs, samples, curves and tables too: with them, the states of normalisers and coefficients."""
    clocks = (".lock", "runtime.json", "stage.log", "manifest.json", "run_manifest.json")
    whole, broken = (
        {
            path.relative_to(outputs / execution).as_posix(): path.read_bytes()
            for path in (outputs / execution).rglob("*")
            if path.is_file() and path.name not in clocks and not path.name.startswith("timing.")
        }
        for execution in ("whole", "broken")
    )
    assert set(whole) == set(broken)
    assert [name for name in whole if whole[name] != broken[name]] == []
    rows = read_jsonl(outputs / "whole" / RUNS[0] / "05_ppo" / "logs" / "metrics.jsonl")
    assert len({row["kl_coef"] for row in rows if "kl_coef" in row}) > 1  # a state that would show if lost
    assert all("weights/intrinsic" in row for row in rows if "reward" in row)


def test_the_killed_run_did_resume(outputs):
    """Otherwise the tests above would compare two uninterrupted runs."""
    points = {}
    for name in KILLS:
        stage = next(stage for stage in EVERY if name.startswith(f"{stage}/"))
        log = (outputs / "broken" / stage / "stage.log").read_text()
        points[stage.partition("/")[2]] = re.findall(r"resuming from step (\d+)", log)
        assert len(read_json(outputs / "broken" / stage / "runtime.json")["sessions"]) == 2
        assert "resuming" not in (outputs / "whole" / stage / "stage.log").read_text()
    assert points.pop("10_evaluation/grpo") == []  # it resumes batches, of which it says nothing here
    assert points["03_sft"] == ["8"] and points["03_distill"] == ["4"]
    # The one before, unless the last one was complete after all.
    assert points["05_ppo"][0] in "8 16" and points["06_grpo"][0] in "4 8" and points["07_rloo"][0] in "4 6"
    assert {len(found) for found in points.values()} == {1}


def test_the_policies_did_change(outputs):
    """Otherwise identical weights would say little: rewards differ within groups, the policy moves."""
    run = outputs / "whole" / RUNS[0]
    weights = [
        (run / name / "adapter_model.safetensors").read_bytes()
        for name in ("03_sft/ckpt_sft/best", *(f"{trained}/final" for trained in TRAINED[1:]))
    ]
    assert len(set(weights)) == len(TRAINED)
    rows = read_jsonl(run / "06_grpo" / "logs" / "metrics.jsonl")
    assert max(row["reward_std"] for row in rows if "reward_std" in row) > 0.05
    seeds = [outputs / "whole" / run / "07_rloo/ckpt_rloo/final/adapter_model.safetensors" for run in RUNS]
    assert seeds[0].read_bytes() != seeds[1].read_bytes()


@pytest.mark.parametrize("run", RUNS)
def test_every_method_has_the_same_budget_and_the_same_prompts(outputs, run):
    """As many completions for each, of the same prompts in the same order: RLOO's log and 04 name them."""
    folder = outputs / "whole" / run
    sampled = {
        stage: read_json(folder / stage / "manifest.json")["metrics"]["cost"]["sampled_completions"]
        for stage in ("03_distill", "04_candidates", "05_ppo", "06_grpo", "07_rloo", "09_dpo")
    }
    assert sampled.pop("09_dpo") == 0  # it learns from 04's
    assert set(sampled.values()) == {COMPLETIONS}
    drawn = [
        name for row in read_jsonl(folder / "07_rloo" / "logs" / "rollouts.jsonl") for name in row["ids"]
    ]
    assert drawn == [row["id"] for row in read_jsonl(folder / "04_candidates" / "candidates.jsonl")]
    pairs = [
        row["id"].rpartition("/")[0]  # a pair is its prompt and a number
        for name in ("pairs", "val_pairs")
        for row in read_jsonl(folder / "08_preferences" / f"{name}.jsonl")
    ]
    assert pairs and set(pairs) <= set(drawn)


def test_the_report_compares_all_methods_over_seeds(outputs):
    report = (outputs / "whole" / "run_001" / "11_comparison" / "report.md").read_text()
    for policy in ("sft", "distill", "ppo", "grpo", "rloo", "dpo"):
        assert f"| {policy} |" in report
    assert f"{COMPLETIONS}" in report and "Failed" not in report
    page = (outputs / "whole" / "run_001" / "11_comparison" / "report.html").read_text()
    assert all(f">{policy}</th>" in page for policy in ("sft", "distill", "ppo", "grpo", "rloo", "dpo"))


def test_every_answer_has_its_rewards_and_its_tokens_their_values(outputs):
    """Policies trained from SFT's are held against it; a token's intrinsic rewards add up to the answer's."""
    for policy in ("base", "sft", "distill", "ppo", "grpo", "rloo", "dpo"):
        folder = outputs / "whole" / RUNS[0] / "10_evaluation" / policy
        answers = {row["id"]: row for row in read_jsonl(folder / "samples" / "predictions.jsonl")}
        values = read_jsonl(folder / "samples" / "tokens.jsonl")
        assert {row["id"] for row in values} == set(answers)
        names = {"log_prob", "intrinsic", "kl_teacher"}
        if policy not in ("base", "sft"):
            names |= {"kl_reference", "log_ratio"}
        for row in values:
            assert set(row["values"]) - {"advantage"} == names
            assert all(len(column) == len(row["tokens"]) for column in row["values"].values())
            paid = answers[row["id"]]["rewards"]
            assert paid["intrinsic"] == pytest.approx(sum(row["values"]["intrinsic"]), abs=2e-3)


def test_without_pairs_dpo_fails_in_one_line_and_the_rest_is_kept(outputs, tmp_path):
    """The driver's exit code is 08's; what SFT gave is compared all the same, and the report says why."""
    folder = tmp_path / RUNS[0]
    left_out = shutil.ignore_patterns("0[5-9]_*", "03_distill", "dpo", "11_comparison")
    shutil.copytree(outputs / "whole" / RUNS[0], folder, ignore=left_out)
    dpo = ["--method", "dpo", "--seeds", SEEDS[0], "--preferences.min_pairs", "1000"]
    settings = {
        key: value for key, value in SETTINGS.items() if key.split(".")[0] in ("reward", "sft", "dpo")
    }
    failed = run(driver(tmp_path, *dpo, settings=settings), code=2)
    errors = [line for line in failed.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and "dpo failed: 08_preferences: too few preference pairs" in errors[0]
    for kept in ("04_candidates", "10_evaluation/base", "10_evaluation/sft", "11_comparison"):
        assert (folder / kept / "manifest.json").exists()
    assert not (folder / "08_preferences/manifest.json").exists() and not (folder / "09_dpo").exists()
    report = (folder / "11_comparison" / "report.md").read_text()
    assert "failed: 08_preferences: too few preference pairs" in report


def test_candidates_carry_every_component_and_are_audited(outputs):
    """What a candidate is paid adds up; its intrinsic part is the weight times what the teacher says."""
    folder = outputs / "whole" / RUNS[0] / "04_candidates"
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
    rows = read_jsonl(outputs / "broken" / RUNS[0] / "03_sft" / "logs" / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == [3, 4, 6, 8, 9, 12, 15, 16]
    assert [row["step"] for row in rows if "val_reward" in row] == [0, 5, 10, 15, 16]


def test_outputs_are_plain_and_portable(outputs):
    """No pickles, no file without a known ending, and no machine's paths in any text."""
    endings = {".json", ".jsonl", ".csv", ".md", ".html", ".png", ".yaml", ".safetensors", ".log", ".txt"}
    for path in (outputs / "broken").rglob("*"):
        if not path.is_file() or path.name in (".lock", "runtime.json", "stage.log"):
            continue
        assert path.suffix in endings, path
        if path.suffix not in (".png", ".safetensors"):
            text = path.read_text(encoding="utf-8")
            assert str(outputs) not in text and str(REPO_ROOT) not in text, path


def test_a_finished_run_is_up_to_date(outputs):
    before = {path: path.stat().st_mtime_ns for path in manifests(outputs, "broken")}
    said = run(driver(outputs / "broken")).stdout
    lines = re.findall(r"^\[\d+/\d+\] (\S+): (.*)$", said, flags=re.MULTILINE)
    assert sorted(lines) == sorted((stage, "up to date") for stage in EVERY)
    assert before == {path: path.stat().st_mtime_ns for path in manifests(outputs, "broken")}
