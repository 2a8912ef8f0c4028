"""Every training method in two processes (DDP, gloo) against one: the same data, equal to rounding."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import training_processes
from group_stub import stage_inputs, tree
from safetensors.torch import load_file

from utils.common import read_json, read_jsonl, write_json, write_jsonl
from utils.rewards.spec import AdaptiveSection, IntrinsicSection, RewardSpec, write_reward_spec

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
# Statistics over rollouts and weights that follow the evidence: a state that processes have to share.
SPEC = RewardSpec(
    required_fields=["program"],
    intrinsic=IntrinsicSection(normaliser="robust", scope="running"),
    adaptive=AdaptiveSection(enabled=True),
)


@pytest.fixture(scope="module")
def trained(tiny_models, tmp_path_factory):
    """What one process wrote, and what two did: started once, as two more processes have much to import."""
    model, teacher = tiny_models("llama"), tiny_models("qwen2")
    inputs, alone, both = (tmp_path_factory.mktemp(name) for name in ("inputs", "alone", "both"))
    make_inputs(inputs, model)
    folders = [str(path) for path in (model, teacher, inputs)]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launcher, training_processes.__file__, *folders, str(both)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as two:
        training_processes.main(model, teacher, inputs, alone)
        _, errors = two.communicate(timeout=300)
    assert two.returncode == 0, errors[-3000:]
    return alone, both


def make_inputs(folder: Path, model: Path) -> None:
    """Eight records, a checkpoint without dropout (each process has random numbers of its own), and pairs."""
    stage_inputs(folder, model)
    write_reward_spec(folder / "reward_spec.yaml", SPEC)
    adapter = folder / "checkpoint" / "adapter_config.json"
    write_json(adapter, read_json(adapter) | {"lora_dropout": 0.0})
    pairs = [
        {
            "id": row["id"],
            "prompt": row["input_text"],
            "chosen": "right<eos>",
            "rejected": "no" * (1 + place % 3) + "<eos>",
        }
        for place, row in enumerate(read_jsonl(folder / "train.jsonl"))
    ]
    write_jsonl(folder / "pairs.jsonl", pairs[:5])
    write_jsonl(folder / "val_pairs.jsonl", pairs[5:])


@pytest.mark.parametrize("method", training_processes.METHODS)
def test_two_processes_train_as_one(trained, method):
    """Log, final weights and samples; the last batch of an epoch is not full in sft and dpo."""
    one, two = (folder / method for folder in trained)
    logs = [read_jsonl(folder / "logs" / "metrics.jsonl") for folder in (one, two)]
    assert any("loss" in row for row in logs[0])
    for expected, found in zip(*logs, strict=True):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            loose = "clip_ratio" in key  # counts tokens on either side of an edge
            close = math.isclose(found[key], value, rel_tol=1e-3, abs_tol=0.1 if loose else 2e-4)
            assert close, (method, expected["step"], key, value, found[key])
    weights = [
        load_file(next(folder.glob("ckpt_*/final/adapter_model.safetensors"))) for folder in (one, two)
    ]
    assert weights[0].keys() == weights[1].keys()
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, rtol=0, atol=2e-4, msg=f"{method} {key}")
    assert tree(one / "valid_samples") == tree(two / "valid_samples")


def test_two_processes_resume_to_the_same_bytes(trained):
    """Killed at the second of three rollouts; every process has caches and random numbers of its own."""
    _, both = trained
    assert tree(both / "grpo_resumed") == tree(both / "grpo")
