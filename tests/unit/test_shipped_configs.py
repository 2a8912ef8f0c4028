"""Every shipped configuration loads, and states what differs from its class's defaults and nothing else."""

import re

import pytest

from utils.data.settings import DatasetConfig
from utils.frame.config import load_tier, read_yaml
from utils.frame.files import REPO_ROOT
from utils.frame.pipeline import METHODS, PRESETS
from utils.frame.typed_settings import changed, leaf_keys
from utils.methods.distill.settings import DistillAlgo
from utils.methods.dpo.settings import DpoAlgo, PreferencesAlgo
from utils.methods.grpo.settings import GrpoAlgo
from utils.methods.ppo.settings import PpoAlgo
from utils.methods.rft.settings import RftAlgo
from utils.methods.rloo.settings import RlooAlgo
from utils.methods.sft.settings import SftAlgo
from utils.models.settings import ModelConfig
from utils.rewards.spec import RewardSpec

ALGORITHMS = {
    "sft": SftAlgo,
    "rft": RftAlgo,
    "ppo": PpoAlgo,
    "grpo": GrpoAlgo,
    "rloo": RlooAlgo,
    "preferences": PreferencesAlgo,
    "dpo": DpoAlgo,
    "distill": DistillAlgo,
}
ALGORITHMS |= {preset: ALGORITHMS[METHODS[preset].package] for preset in PRESETS}
TIERS = {"models": ModelConfig, "datasets": DatasetConfig, "rewards": RewardSpec}
# Those of Accelerate are no tier; tests/unit/frame/test_processes.py holds them against Accelerate's own.
FILES = [
    path for path in sorted((REPO_ROOT / "configs").glob("*/*.yaml")) if path.parent.name != "accelerate"
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_it_states_what_differs_from_the_defaults(path):
    cls = ALGORITHMS[path.stem] if path.parent.name == "algorithms" else TIERS[path.parent.name]
    assert read_yaml(path) == changed(load_tier(cls, path))
    for key in re.findall("`([a-z_.]+)`", path.read_text()):
        assert key in leaf_keys(cls), f"a comment names {key}"


def test_a_default_stated_again_would_be_seen(tmp_path):
    (tmp_path / "grpo.yaml").write_text(f"beta: {GrpoAlgo().beta}\nnum_generations: 4\n")
    assert changed(load_tier(GrpoAlgo, tmp_path / "grpo.yaml")) == {"num_generations": 4}
