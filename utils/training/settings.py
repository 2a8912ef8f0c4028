"""The settings that all training methods share. Light to import."""

from dataclasses import dataclass, field

from utils.frame.typed_settings import setting


@dataclass
class TuningRecord:
    """What is known of how these settings were found: it changes no training, and stands in the manifest."""

    trials: int | None = setting(
        None, "settings of this method that were tried before these; null: not recorded", at_least=0
    )
    chosen_on: str | None = setting(None, "what these were chosen by; null: nothing, or not recorded")


@dataclass
class OptimizerSettings:
    """AdamW, its schedule, and the micro-batches of an optimizer step; names are Transformers'."""

    learning_rate: float = setting(1e-3, "peak learning rate of AdamW", above=0)
    lr_scheduler_type: str = setting("linear", "schedule, as Transformers names it")
    warmup_steps: int = setting(5, "optimizer steps of linear warm-up", at_least=0)
    weight_decay: float = setting(0.0, "AdamW's decoupled weight decay", at_least=0)
    gradient_accumulation_steps: int = setting(1, "micro-batches per optimizer step", above=0)
    tuning: TuningRecord = field(default_factory=TuningRecord)


@dataclass
class EpochSettings(OptimizerSettings):
    """What SFT and DPO share: passes over a data set. Batches are those of all processes together."""

    num_train_epochs: float = setting(2.0, "passes over the data, unless max_steps is given", above=0)
    max_steps: int = setting(-1, "optimizer steps; -1: as many as num_train_epochs takes")
    per_device_train_batch_size: int = setting(
        32, "demonstrations or pairs per micro-batch, shared by the processes", above=0
    )
