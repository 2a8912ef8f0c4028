"""The recipes of docs/recipes.md, end to end on real data, with stand-ins of their models.

The script writes its plan, whose steps are run one after the other in this process, and so is what the plan's
own command of the comparison starts. Sizes alone are changed.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.scripts import InThisProcess, execute_stage
from tests.support.stand_ins import make_stand_in
from utils.frame.files import REPO_ROOT, read_json, read_jsonl
from utils.frame.stage_plan import load_script, make_plan
from utils.methods.ppo.settings import PpoAlgo
from utils.methods.sft.settings import SftAlgo
from utils.rollouts.batches import share_batches

SMALL = {
    "dataset.max_train": 16,
    "dataset.max_val": 2,
    "dataset.max_test": 6,
    "model.model.torch_dtype": "float32",
    "model.generation.max_new_tokens": 12,
    "model.validation.num_items": 1,
    "model.validation.eval_steps": 1,
    "candidates.max_items": 2,
    "candidates.num_candidates": 2,
    "ppo.rollout_batch_size": 16,
    "ppo.gradient_accumulation_steps": 1,
}
GRPO = {"grpo.steps_per_generation": 2, "grpo.gradient_accumulation_steps": 1}


@pytest.fixture
def recipe(tmp_path, shared_data, monkeypatch, unrendered):
    """Run a recipe on stand-ins of one kind; returns the folder of its only run."""
    monkeypatch.chdir(REPO_ROOT)
    monkeypatch.setattr("utils.driver.execution.Child", InThisProcess)

    def run(name: str, kind: str, data: str, **settings) -> Path:
        student, teacher = (make_stand_in(kind, tmp_path / f"{kind}_{seed}", seed=seed) for seed in (0, 1))
        options = SMALL | {"model.model.name_or_path": student, "dataset.data_root": shared_data / data}
        words = [word for key, value in (options | settings).items() for word in (f"--{key}", str(value))]
        paths = ["--outputs_root", str(tmp_path / "out"), "--export_plan", str(tmp_path / "plan.json")]
        environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "SEEDS": "0",
            "ROLLOUTS": "1",
            "TEACHER": str(teacher),
        }
        subprocess.run(["bash", f"runs/{name}.sh", *words, *paths], check=True, env=environment, timeout=120)
        *steps, compare = json.loads((tmp_path / "plan.json").read_text())
        for step in steps:
            _, script, *argv = step["argv"]
            assert execute_stage(script, argv) == 0, step["name"]
        assert load_script("12_driver.py").main(compare["argv"][2:]) == 0
        return tmp_path / "out" / f"{name}_seed_0"

    return run


def metrics(run_dir: Path, policy: str) -> dict:
    return read_json(run_dir / "10_evaluation" / policy / "metrics.json")


def answers(run_dir: Path, policy: str) -> list[str]:
    rows = read_jsonl(run_dir / "10_evaluation" / policy / "samples" / "predictions.jsonl")
    return [row["response"] for row in rows]


def compared(run_dir: Path) -> list[str]:
    """The policies of the run's comparison, none of which failed."""
    page = (run_dir / "11_comparison" / "report.md").read_text()
    assert "failed" not in page
    found = read_json(run_dir / "11_comparison" / "manifest.json")["inputs"]
    return sorted({name.split("/")[1] for name in found if name.startswith("10_evaluation/")})


def cost(run_dir: Path, folder: str) -> int:
    return read_json(run_dir / folder / "manifest.json")["metrics"]["cost"]["sampled_completions"]


def test_ppo_against_grpo_on_gsm8k(recipe):
    run_dir = recipe("ppo_vs_grpo_gsm8k", "qwen2", "gsm8k", **GRPO)
    # Both start from the instruction-tuned model as it is: nothing is fine-tuned before.
    assert compared(run_dir) == ["base", "grpo_task", "ppo_task"] and not (run_dir / "03_sft").exists()
    assert cost(run_dir, "05_ppo_task") == cost(run_dir, "06_grpo_task") == 16
    assert metrics(run_dir, "ppo_task")["strict_accuracy"]["n"] == 6
    config = read_json(run_dir / "05_ppo_task" / "manifest.json")["config"]
    assert config["algo"]["value_model"] == "separate" and config["algo"]["lam"] == 1
    assert "teacher" not in metrics(run_dir, "grpo_task")


def test_intrinsic_distillation_on_gsm8k(recipe):
    settings = {"distill.steps_per_generation": 4, "distill.gradient_accumulation_steps": 2}
    run_dir = recipe("intrinsic_distillation_gsm8k", "qwen2", "gsm8k", **settings)
    assert compared(run_dir) == ["base", "distill", "ppo_intrinsic", "teacher"]
    assert answers(run_dir, "base") != answers(run_dir, "teacher") and not (run_dir / "03_sft").exists()
    assert cost(run_dir, "05_ppo_intrinsic") == cost(run_dir, "03_distill") == 16
    spec = (run_dir / "02_rewards" / "reward_spec.yaml").read_text()
    assert "form: bellman\n" in spec and "intrinsic: 1.0\n" in spec
    config = read_json(run_dir / "05_ppo_intrinsic" / "manifest.json")["config"]["model"]
    assert (
        config["model"]["teacher_load_in_4bit"]
        and config["model"]["teacher_name_or_path"] == "external/qwen2_1"
    )
    assert metrics(run_dir, "ppo_intrinsic")["teacher"]


def test_finqa_with_llama(recipe):
    sizes = {
        "dataset.max_input_tokens": 200,  # the stand-in's tokenizer has short tokens
        "model.max_prompt_length": 2048,
        "sft.max_steps": 2,
        "sft.generation.max_new_tokens": 180,  # most demonstrations, in the short tokens of a stand-in
        "sft.gradient_accumulation_steps": 1,
    }
    run_dir = recipe("finqa_llama", "llama3", "finqa", **GRPO, **sizes)
    assert compared(run_dir) == ["base", "grpo_task", "ppo_task", "sft"]
    sft = read_json(run_dir / "03_sft" / "manifest.json")["metrics"]
    assert sft["demonstrations"] + sft["left_out"] == 16 and sft["cost"]["trained_tokens"] > 0
    assert cost(run_dir, "05_ppo_task") == cost(run_dir, "06_grpo_task") == 16
    assert metrics(run_dir, "sft")["execution_accuracy"]["n"] == 6


@pytest.mark.parametrize("name", ["ppo_vs_grpo_gsm8k", "intrinsic_distillation_gsm8k", "finqa_llama"])
def test_processes_can_share_every_batch(name, tmp_path):
    """2 to 16 processes divide the batches of each training step, at the sizes that the recipe has."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PROCESSES": "2",
        "SEEDS": "0",
    }
    words = ["--outputs_root", str(tmp_path / "out"), "--export_plan", str(tmp_path / "plan.json")]
    subprocess.run(
        ["bash", f"runs/{name}.sh", *words], check=True, env=environment, cwd=REPO_ROOT, timeout=120
    )
    trained = 0
    for step in json.loads((tmp_path / "plan.json").read_text()):
        place = next(place for place, word in enumerate(step["argv"]) if word.endswith(".py"))
        script, *argv = step["argv"][place:]
        if script[:2] not in ("03", "05", "06"):
            continue
        assert step["argv"][:2] == ["accelerate", "launch"]
        algo = make_plan(load_script(script).STAGE, argv).config.algo
        accumulation, steps, group = algo.gradient_accumulation_steps, None, 1
        if isinstance(algo, PpoAlgo):
            steps, group = algo.num_mini_batches * accumulation, algo.num_generations
            rows = algo.rollout_batch_size // steps
        else:
            rows = algo.per_device_train_batch_size
            if not isinstance(algo, SftAlgo):
                steps, group = algo.steps_per_generation, algo.num_generations
        for processes in (2, 4, 8, 16):
            shared = share_batches(rows, accumulation, steps, group=group, processes=processes)
            own = shared.per_device_train_batch_size * shared.gradient_accumulation_steps
            assert own * processes == rows * accumulation, step["name"]
        trained += 1
    assert trained == (3 if name == "finqa_llama" else 2)
