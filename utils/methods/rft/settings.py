"""The settings of rejection-sampling fine-tuning (configs/algorithms/rft.yaml). Light to import."""

from dataclasses import dataclass

from utils.frame.typed_settings import setting
from utils.methods.sft.settings import SftAlgo


@dataclass
class RftAlgo(SftAlgo):
    """Fine-tuning on right candidates alone (Yuan et al. 2023, arXiv 2308.01825).

    Candidates of one prompt that are token for token the same count once.
    """

    learning_rate: float = setting(1e-3, "peak learning rate of AdamW", above=0)
    max_per_prompt: int = setting(4, "most right candidates of one prompt, drawn at random", above=0)
