"""The settings of supervised fine-tuning (configs/algorithms/sft.yaml). Light to import."""

from dataclasses import dataclass

from utils.frame.typed_settings import setting
from utils.training.settings import EpochSettings


@dataclass
class SftAlgo(EpochSettings):
    """Supervised fine-tuning on demonstrations, loss on completions only."""

    learning_rate: float = setting(2e-3, "peak learning rate of AdamW", above=0)
    lr_scheduler_type: str = setting("cosine", "schedule after warm-up, as Transformers names it")
    warmup_steps: int = setting(10, "optimizer steps of linear warm-up", at_least=0)
