"""Every training method in two processes (gloo) against one: the same data, equal to rounding.

Under DDP; supervised fine-tuning of all weights under FSDP as well.
"""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support import training_processes
from tests.support.training_stages import stage_inputs, tree, write_pairs
from utils.frame.files import read_json, read_jsonl, write_json
from utils.models.loading import load_policy
from utils.models.settings import ModelSection
from utils.rewards.spec import AdaptiveSection, IntrinsicSection, RewardSpec, write_reward_spec

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
    write_pairs(folder, read_jsonl(folder / "train.jsonl"))


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
            if key == "rewards/accuracies" and abs(expected["rewards/margins"]) < 1e-6:
                continue  # the policy is still its reference: which of two equal rewards is more is rounding
            close = math.isclose(found[key], value, rel_tol=1e-3, abs_tol=0.1 if loose else 2e-4)
            assert close, (method, expected["step"], key, value, found[key])
    weights = [final_weights(folder) for folder in (one, two)]
    assert weights[0].keys() == weights[1].keys()
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, rtol=0, atol=2e-4, msg=f"{method} {key}")
    assert tree(one / "valid_samples") == tree(two / "valid_samples")


def final_weights(folder: Path) -> dict[str, torch.Tensor]:
    """What the final checkpoint holds; of whole models, as they load."""
    checkpoint = next(folder.glob("ckpt_*/final"))
    adapter = checkpoint / "adapter_model.safetensors"
    return (
        load_file(adapter) if adapter.is_file() else load_policy(checkpoint, ModelSection())[0].state_dict()
    )


@pytest.mark.parametrize("method", [name for name in training_processes.METHODS if name != "dpo"])
def test_gradients_of_two_processes_are_those_of_one(trained, method):
    """Of the first two optimizer steps, which share a rollout; Adam would not show a wrong factor."""
    one, two = (load_file(folder / "gradients" / f"{method}.safetensors") for folder in trained)
    assert one.keys() == two.keys() and {name.split()[0] for name in one} == {"0", "1"}
    for step in "01":
        names = [name for name in one if name.startswith(step)]
        largest = max(float(one[name].abs().max()) for name in names)
        for name in names:
            torch.testing.assert_close(
                two[name], one[name], rtol=0, atol=1e-5 * largest, msg=f"{method} {name}"
            )


def test_fsdp_spreads_weights_and_optimizer_state(trained):
    """Each process has about half of both, and together they have all."""
    held = [read_json(trained[1] / f"held_{process}.json") for process in (0, 1)]
    for name in ("weights", "moments"):
        parts, wholes = zip(*(each[name] for each in held), strict=True)
        assert sum(parts) == wholes[0] == wholes[1] > 20_000
        assert max(parts) < 0.52 * wholes[0]


@pytest.mark.parametrize("method", ["sft", "grpo"])
def test_two_processes_resume_to_the_same_bytes(trained, method):
    """sft killed within its second epoch, grpo at the second of its rollouts; every process has caches and
    random numbers of its own."""
    _, both = trained
    assert tree(both / f"{method}_resumed") == tree(both / method)


def test_groups_are_discarded_in_both_processes(trained):
    """They draw one, two or three groups together; the numbers are compared above."""
    rows = read_jsonl(trained[1] / "rloo_filtered" / "logs" / "metrics.jsonl")
    assert max(row.get("groups_discarded", 0) for row in rows) > 0
    assert rows[-1]["sampled_completions"] == 32


def test_ppo_leaves_a_rollout_in_both_processes(trained):
    """By a KL that is measured over both; the numbers are compared above."""
    rows = read_jsonl(trained[1] / "ppo_separate" / "logs" / "metrics.jsonl")
    assert any(row.get("updates_skipped", 0) >= 1 for row in rows)


def test_two_processes_choose_as_one(trained):
    """The same prompts in all, each process its half; Q from the feedback of both, equal bit by bit between
    them and to rounding to that of one process."""
    alone, both = trained
    one, first, second = (read_json(path) for path in (alone / "0.json", both / "0.json", both / "1.json"))
    assert len(one) == len(first) == len(second) == 8
    for expected, left, right in zip(one, first, second, strict=True):
        assert left["chosen"] == right["chosen"] == expected["chosen"]
        assert left["q"] == right["q"] == pytest.approx(expected["q"], abs=1e-5)
        assert left["rows"] + right["rows"] == expected["rows"]
        assert expected["rows"] == [place for place in expected["chosen"] for _ in range(4)]
    assert max(one[-1]["q"].values()) > 0.1 and len({tuple(row["chosen"]) for row in one}) == 8
