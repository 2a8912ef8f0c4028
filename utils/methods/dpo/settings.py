"""The settings of preference pairs and DPO (configs/algorithms/{preferences,dpo}.yaml). Light to import."""

from dataclasses import dataclass
from typing import Literal

from utils.frame.config import setting
from utils.frame.typed_settings import above, at_least


@dataclass
class PreferencesAlgo:
    """Which candidates of a prompt are set against each other (08; configs/algorithms/preferences.yaml).

    What is chosen always has a valid form, and at least ``min_margin`` more reward than what is rejected.
    """

    rules: list[Literal["correct_over_wrong", "valid_over_invalid", "higher_reward"]] = setting(
        ["correct_over_wrong", "valid_over_invalid"],
        "what makes a pair, the most wanted first: verified right over wrong; valid form over invalid, where "
        "not less right; more reward, whatever else",
    )
    min_margin: float = setting(0.1, "least difference of rewards")
    pairs_per_prompt: int = setting(4, "most pairs of one prompt")
    selection: Literal["random", "largest_margin", "smallest_margin"] = setting(
        "random", "which come first, where a prompt has more"
    )
    gold_as_chosen: bool = setting(
        False, "let the demonstration stand in where no candidate is right, if it grades as right itself"
    )
    max_similarity: float = setting(
        1.0, "leave out pairs whose two completions are this alike or more (share of words in common order)"
    )
    max_repeat_similarity: float = setting(
        1.0, "leave out pairs whose two completions are both this alike or more to those of another pair"
    )
    val_fraction: float = setting(0.1, "share of the prompts held out, with all their pairs")
    min_pairs: int = setting(64, "fewer pairs to train on are an error")

    def validate(self) -> None:
        above(
            0,
            pairs_per_prompt=self.pairs_per_prompt,
            max_similarity=self.max_similarity,
            max_repeat_similarity=self.max_repeat_similarity,
            min_pairs=self.min_pairs,
        )
        if not self.rules or len(set(self.rules)) < len(self.rules):
            raise ValueError(f"rules must name one rule at least, and none twice, found {self.rules}")
        at_least(0, min_margin=self.min_margin)
        for name in ("max_similarity", "max_repeat_similarity"):
            if getattr(self, name) > 1:
                raise ValueError(f"{name} must be at most 1, found {getattr(self, name)}")
        if not 0 <= self.val_fraction <= 0.5:
            raise ValueError(f"val_fraction must be between 0 and 0.5, found {self.val_fraction}")


# As TRL's DPOTrainer names them (TRL 1.16).
DPO_LOSSES = Literal[
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "sigmoid_norm",
]


@dataclass
class DpoAlgo:
    """Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290; configs/algorithms/dpo.yaml).

    The reference is the SFT policy. Intervals of the model tier count optimizer steps.
    """

    learning_rate: float = setting(5e-4, "peak learning rate of AdamW")
    lr_scheduler_type: str = setting("linear", "schedule, as Transformers names it")
    warmup_steps: int = setting(5, "optimizer steps of linear warm-up")
    num_train_epochs: float = setting(1.0, "passes over the pairs, unless max_steps is given")
    max_steps: int = setting(-1, "optimizer steps; -1: as many as num_train_epochs takes")
    per_device_train_batch_size: int = setting(32, "pairs per micro-batch, shared by the processes")
    gradient_accumulation_steps: int = setting(1, "micro-batches per optimizer step")
    weight_decay: float = setting(0.0, "AdamW's decoupled weight decay")
    beta: float = setting(0.1, "strength of the tie to the reference; ipo: its tau")
    loss_type: list[DPO_LOSSES] = setting(["sigmoid"], "losses, added up")
    loss_weights: list[float] = setting([], "a weight for each loss; empty: 1 each")
    label_smoothing: float = setting(0.0, "share of wrong labels assumed (robust, exo_pair, aot)")

    def validate(self) -> None:
        above(
            0,
            learning_rate=self.learning_rate,
            num_train_epochs=self.num_train_epochs,
            per_device_train_batch_size=self.per_device_train_batch_size,
            gradient_accumulation_steps=self.gradient_accumulation_steps,
            beta=self.beta,
        )
        at_least(0, warmup_steps=self.warmup_steps, weight_decay=self.weight_decay)
        if not self.loss_type:
            raise ValueError("loss_type must name one loss at least")
        if self.loss_weights and len(self.loss_weights) != len(self.loss_type):
            raise ValueError(
                f"loss_weights must have a weight for each of loss_type ({len(self.loss_type)}), "
                f"found {len(self.loss_weights)}"
            )
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(
                f"label_smoothing must be at least 0 and below 0.5, found {self.label_smoothing}"
            )
        if "exo_pair" in self.loss_type and not self.label_smoothing:
            raise ValueError("loss_type exo_pair needs label_smoothing above 0; its paper recommends 1e-3")
