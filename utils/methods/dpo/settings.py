"""The settings of preference pairs and DPO (configs/algorithms/{preferences,dpo}.yaml). Light to import."""

from dataclasses import dataclass
from typing import Literal

from utils.frame.typed_settings import setting
from utils.training.settings import EpochSettings


@dataclass
class PreferencesAlgo:
    """Which candidates of a prompt are set against each other (08).

    What is chosen always has a valid form, and at least ``min_margin`` more reward than what is rejected.
    """

    rules: list[Literal["correct_over_wrong", "valid_over_invalid", "higher_reward"]] = setting(
        ["correct_over_wrong", "valid_over_invalid"],
        "what makes a pair, the most wanted first: verified right over wrong; valid form over invalid, where "
        "not less right; more reward, whatever else",
    )
    min_margin: float = setting(0.1, "least difference of rewards", at_least=0)
    pairs_per_prompt: int = setting(4, "most pairs of one prompt", above=0)
    selection: Literal["random", "largest_margin", "smallest_margin"] = setting(
        "random", "which come first, where a prompt has more"
    )
    gold_as_chosen: bool = setting(
        False, "let the demonstration stand in where no candidate is right, if it grades as right itself"
    )
    max_similarity: float = setting(
        1.0,
        "leave out pairs whose two completions are this alike or more (share of words in common order)",
        above=0,
        at_most=1,
    )
    max_repeat_similarity: float = setting(
        1.0,
        "leave out pairs whose two completions are both this alike or more to those of another pair",
        above=0,
        at_most=1,
    )
    val_fraction: float = setting(
        0.1, "share of the prompts held out, with all their pairs", between=(0, 0.5)
    )
    min_pairs: int = setting(64, "fewer pairs to train on are an error", above=0)

    def validate(self) -> None:
        if not self.rules or len(set(self.rules)) < len(self.rules):
            raise ValueError(f"rules must name one rule at least, and none twice, found {self.rules}")


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
class DpoAlgo(EpochSettings):
    """Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290) from the SFT policy, which is
    also the reference.

    The sft loss on the chosen completions keeps them likely: without it the embedded student's likelihood
    moves away from both completions (docs/dpo.md).
    """

    learning_rate: float = setting(5e-4, "peak learning rate of AdamW", above=0)
    beta: float = setting(0.1, "strength of the tie to the reference; ipo: its tau", above=0)
    loss_type: list[DPO_LOSSES] = setting(["sigmoid", "sft"], "losses, added up")
    loss_weights: list[float] = setting([], "a weight for each loss; empty: 1 each")
    label_smoothing: float = setting(
        0.0, "share of wrong labels assumed (robust, exo_pair, aot)", at_least=0, below=0.5
    )

    validation_kl: bool = setting(
        True, "sample the validation prompts for the KL to the reference, each time it validates"
    )

    def validate(self) -> None:
        if not self.loss_type:
            raise ValueError("loss_type must name one loss at least")
        if self.loss_weights and len(self.loss_weights) != len(self.loss_type):
            raise ValueError(
                f"loss_weights must have a weight for each of loss_type ({len(self.loss_type)}), "
                f"found {len(self.loss_weights)}"
            )
        if "exo_pair" in self.loss_type and not self.label_smoothing:
            raise ValueError("loss_type exo_pair needs label_smoothing above 0; its paper recommends 1e-3")
