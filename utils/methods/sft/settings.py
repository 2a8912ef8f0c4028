"""The settings of supervised fine-tuning (configs/algorithms/sft.yaml). Light to import."""

from dataclasses import dataclass

from utils.frame.config import setting
from utils.frame.typed_settings import above


@dataclass
class SftAlgo:
    """Supervised fine-tuning on demonstrations, loss on completions only (configs/algorithms/sft.yaml)."""

    learning_rate: float = setting(1e-3, "peak learning rate of AdamW")
    lr_scheduler_type: str = setting("cosine", "schedule after warm-up, as Transformers names it")
    warmup_steps: int = setting(10, "optimizer steps of linear warm-up")
    num_train_epochs: float = setting(1.0, "passes over the training set, unless max_steps is given")
    max_steps: int = setting(-1, "optimizer steps; -1: as many as num_train_epochs takes")
    per_device_train_batch_size: int = setting(32, "sequences per micro-batch, shared by the processes")
    gradient_accumulation_steps: int = setting(1, "micro-batches per optimizer step")
    weight_decay: float = setting(0.0, "AdamW's decoupled weight decay")

    def validate(self) -> None:
        above(
            0,
            learning_rate=self.learning_rate,
            num_train_epochs=self.num_train_epochs,
            per_device_train_batch_size=self.per_device_train_batch_size,
            gradient_accumulation_steps=self.gradient_accumulation_steps,
        )
