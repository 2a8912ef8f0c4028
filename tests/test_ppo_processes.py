"""PPO in two processes (DDP) against one: the same rollouts give the same losses, statistics and weights."""

import subprocess
import sys

import ppo_processes
import pytest
import torch
from safetensors.torch import load_file

from utils.common import read_json

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def trained(tiny_models, tmp_path_factory):
    """What one process wrote, and what two did: started once, as two more processes have much to import."""
    model = tiny_models("llama")
    alone, both = (tmp_path_factory.mktemp(name) for name in ("alone", "both"))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launcher, ppo_processes.__file__, str(model), str(both)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as two:
        ppo_processes.main(model, alone)
        _, errors = two.communicate(timeout=300)
    assert two.returncode == 0, errors[-3000:]
    return alone, both


def test_two_processes_train_as_one(trained):
    """Each has half of every rollout: whitening, means per token, KL control and target_kl span both."""
    alone, both = trained
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
