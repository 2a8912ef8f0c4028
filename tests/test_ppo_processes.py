"""PPO in two processes (DDP) against one: the same rollouts give the same losses, statistics and weights."""

import subprocess
import sys

import ppo_processes
import pytest
import torch
from safetensors.torch import load_file

from utils.common import read_json

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


def test_two_processes_train_as_one(tiny_models, tmp_path):
    """Each has half of every rollout: whitening, means per token, KL control and target_kl span both."""
    model, alone, both = tiny_models("llama"), tmp_path / "alone", tmp_path / "both"
    alone.mkdir()
    both.mkdir()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launcher, ppo_processes.__file__, str(model), str(both)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as two:
        ppo_processes.main(model, alone)
        _, errors = two.communicate(timeout=300)
    assert two.returncode == 0, errors[-3000:]
    for name in ("shared", "separate"):
        rows = zip(read_json(alone / f"{name}.json"), read_json(both / f"{name}.json"), strict=True)
        for expected, found in rows:
            assert found.keys() == expected.keys()
            for key, value in expected.items():
                tolerance = 0.05 if "clip_ratio" in key else 1e-4
                assert found[key] == pytest.approx(value, rel=2e-3, abs=tolerance), (name, key)
        expected, found = (load_file(folder / f"{name}.safetensors") for folder in (alone, both))
        assert expected.keys() == found.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=0, atol=2e-4, msg=f"{name} {key}")
    assert all(row["updates_skipped"] >= 1 for row in read_json(both / "separate.json"))
