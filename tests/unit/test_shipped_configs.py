"""Every configuration that is shipped loads into its tier."""

import pytest

from utils.data.settings import DatasetConfig
from utils.frame.config import load_tier
from utils.frame.files import REPO_ROOT
from utils.methods.distill.settings import DistillAlgo
from utils.methods.dpo.settings import DpoAlgo, PreferencesAlgo
from utils.methods.grpo.settings import GrpoAlgo
from utils.methods.ppo.settings import PpoAlgo
from utils.methods.rloo.settings import RlooAlgo
from utils.methods.sft.settings import SftAlgo
from utils.models.settings import ModelConfig
from utils.rewards.spec import RewardSpec

ALGORITHMS = {
    "sft": SftAlgo,
    "ppo": PpoAlgo,
    "grpo": GrpoAlgo,
    "rloo": RlooAlgo,
    "preferences": PreferencesAlgo,
    "dpo": DpoAlgo,
    "distill": DistillAlgo,
}
TIERS = {"models": ModelConfig, "datasets": DatasetConfig, "rewards": RewardSpec}
# Those of Accelerate are no tier; tests/unit/frame/test_processes.py holds them against Accelerate's own.
FILES = [
    path for path in sorted((REPO_ROOT / "configs").glob("*/*.yaml")) if path.parent.name != "accelerate"
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_it_loads(path):
    cls = ALGORITHMS[path.stem.split("_")[0]] if path.parent.name == "algorithms" else TIERS[path.parent.name]
    load_tier(cls, path)
