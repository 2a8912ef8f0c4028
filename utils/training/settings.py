"""Algorithm tiers: the hyper-parameters of each method. Light to import: the driver reads them all.

Names are those of TRL's configs (SFTConfig, GRPOConfig, RLOOConfig), where it has them. Batches are those of
all processes together, also where TRL's name says per device: `batches.py` divides them.
"""

from dataclasses import dataclass, field
from typing import Literal

from utils.config import setting
from utils.training.curriculum_settings import CurriculumSettings
from utils.typed import above, at_least, within


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


@dataclass
class RolloutAlgo:
    """What GRPO, RLOO and distillation share: the optimizer, and rollouts and their passes."""

    learning_rate: float = setting(5e-4, "peak learning rate of AdamW")
    lr_scheduler_type: str = setting("constant_with_warmup", "schedule, as Transformers names it")
    warmup_steps: int = setting(5, "optimizer steps of linear warm-up")
    weight_decay: float = setting(0.0, "AdamW's decoupled weight decay")
    num_rollouts: int = setting(64, "rollouts in all")
    per_device_train_batch_size: int = setting(64, "completions per micro-batch, shared by the processes")
    gradient_accumulation_steps: int = setting(1, "micro-batches per optimizer step")
    steps_per_generation: int = setting(2, "micro-batches a rollout is split into")
    num_iterations: int = setting(2, "passes over each rollout (mu)")
    curriculum: CurriculumSettings = field(default_factory=CurriculumSettings)

    @property
    def rollout_size(self) -> int:
        """Completions per rollout, over all processes."""
        return self.per_device_train_batch_size * self.steps_per_generation

    def _validate_rollouts(self, name: str, size: int) -> None:
        """Check what is shared; ``name`` is the setting that holds the completions per prompt."""
        above(
            0,
            learning_rate=self.learning_rate,
            num_rollouts=self.num_rollouts,
            per_device_train_batch_size=self.per_device_train_batch_size,
            gradient_accumulation_steps=self.gradient_accumulation_steps,
            steps_per_generation=self.steps_per_generation,
            num_iterations=self.num_iterations,
            **{name: size},
        )
        if self.rollout_size % size:
            raise ValueError(
                f"per_device_train_batch_size x steps_per_generation ({self.rollout_size}) must be a "
                f"multiple of {name} ({size})"
            )


@dataclass
class _GroupAlgo(RolloutAlgo):
    """What GRPO and RLOO share: rollouts of groups, whose completions are compared with each other."""

    beta: float = setting(0.0, "weight of the KL penalty to the reference policy")
    epsilon: float = setting(0.2, "clip range of the probability ratio")
    epsilon_high: float | None = setting(None, "upper clip range; null: epsilon")
    mask_truncated_completions: bool = setting(False, "leave completions without an end out of the loss")

    @property
    def all_rollouts(self) -> int:
        """Rollouts sampled in all, also where an optimizer step takes several."""
        micro_batches = self.steps_per_generation * self.num_iterations
        return self.num_rollouts * max(1, self.gradient_accumulation_steps // micro_batches)

    @property
    def sampled_completions(self) -> int:
        """Completions sampled in all, over all processes."""
        return self.all_rollouts * self.rollout_size

    def _validate_groups(self, name: str, size: int) -> None:
        """Check everything shared; ``name`` is the setting that holds the completions per prompt."""
        above(0, epsilon=self.epsilon)
        if size < 2:
            raise ValueError(f"{name} must be at least 2 to compare within a group, found {size}")
        at_least(0, beta=self.beta)
        self._validate_rollouts(name, size)


@dataclass
class GrpoAlgo(_GroupAlgo):
    """Group-relative policy optimisation (Shao et al. 2024, arXiv 2402.03300; configs/algorithms/grpo.yaml).

    A rollout holds ``per_device_train_batch_size * steps_per_generation`` completions,
    ``num_generations`` of each prompt, and is used for ``num_iterations`` passes. (Where
    ``gradient_accumulation_steps`` is more than a rollout serves, what one optimizer step takes counts as one
    rollout.) In this stage the model tier's ``training.save_steps``, ``training.logging_steps`` and
    ``validation.eval_steps`` count rollouts.
    """

    num_generations: int = setting(8, "completions per prompt (G)")
    loss_type: Literal["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"] = setting(
        "dapo", "clipping and averaging of token losses (docs/grpo.md)"
    )
    scale_rewards: Literal["group", "batch", "none"] = setting("group", "what advantages are divided by")
    importance_sampling_level: Literal["token", "sequence"] = setting("token", "level of the ratio")
    supervision: Literal["outcome", "process"] = setting(
        "outcome", "process: the teacher's token rewards give every token an advantage of its own"
    )

    @property
    def num_prompts(self) -> int:
        """Prompts drawn in all, over all processes."""
        return self.sampled_completions // self.num_generations

    def validate(self) -> None:
        self._validate_groups("num_generations", self.num_generations)
        if self.loss_type == "cispo" and (self.epsilon_high is None or self.epsilon_high < 1):
            raise ValueError(
                "loss_type cispo caps the ratio itself at epsilon_high, which must be at least 1 "
                f"(5.0 is usual), found {self.epsilon_high}"
            )
        level = {"luspo": "sequence", "vespo": "token"}.get(self.loss_type)
        if level and self.importance_sampling_level != level:
            raise ValueError(f"loss_type {self.loss_type} needs importance_sampling_level {level}")


@dataclass
class RlooAlgo(_GroupAlgo):
    """REINFORCE leave-one-out (Ahmadian et al. 2024, arXiv 2402.14740; configs/algorithms/rloo.yaml).

    Rollouts and their passes are those of GRPO, with ``num_samples`` completions of each prompt. The KL
    penalty is part of the reward; ratios are those of whole completions. In this stage the model tier's
    ``training.save_steps``, ``training.logging_steps`` and ``validation.eval_steps`` count rollouts.
    """

    beta: float = setting(0.05, "weight of the KL penalty to the reference policy, in the reward")
    num_samples: int = setting(8, "completions per prompt (G)")
    baseline_type: Literal["loo", "mean", "none"] = setting(
        "loo", "taken off a reward: the mean of the others in the group; of all in it; nothing (REINFORCE)"
    )
    normalize_advantages: bool = setting(False, "advantages of a rollout to mean 0 and deviation 1")

    @property
    def num_prompts(self) -> int:
        """Prompts drawn in all, over all processes."""
        return self.sampled_completions // self.num_samples

    def validate(self) -> None:
        self._validate_groups("num_samples", self.num_samples)


@dataclass
class PpoAlgo:
    """Proximal policy optimisation on tokens (Schulman et al. 2017; configs/algorithms/ppo.yaml).

    ``num_rollouts`` rollouts of ``rollout_batch_size`` completions, ``num_generations`` of each prompt. A
    rollout is passed over ``num_ppo_epochs`` times, each time in ``num_mini_batches`` optimizer steps of
    ``gradient_accumulation_steps`` micro-batches. In this stage the model tier's ``training.save_steps``,
    ``training.logging_steps`` and ``validation.eval_steps`` count rollouts.
    """

    learning_rate: float = setting(1e-3, "peak learning rate of AdamW")
    value_learning_rate: float | None = setting(None, "peak learning rate of the critic; null: learning_rate")
    lr_scheduler_type: str = setting("linear", "schedule, as Transformers names it")
    warmup_steps: int = setting(5, "optimizer steps of linear warm-up")
    weight_decay: float = setting(0.0, "AdamW's decoupled weight decay")
    num_rollouts: int = setting(64, "rollouts in all")
    rollout_batch_size: int = setting(128, "completions per rollout")
    num_generations: int = setting(8, "completions per prompt; 1 is allowed, the critic is the baseline")
    num_ppo_epochs: int = setting(2, "passes over each rollout")
    num_mini_batches: int = setting(2, "optimizer steps per pass")
    gradient_accumulation_steps: int = setting(1, "micro-batches per optimizer step")
    gamma: float = setting(1.0, "discount")
    lam: float = setting(0.95, "lambda of generalised advantage estimation; 1: full returns")
    cliprange: float = setting(0.2, "clip range of the probability ratio")
    cliprange_value: float = setting(0.2, "how far a value may move from the rollout's without being clipped")
    vf_coef: float = setting(0.1, "weight of the value loss")
    entropy_coef: float = setting(0.0, "weight of the entropy bonus in the loss: of each token alone")
    entropy_reward_coef: float = setting(
        0.0, "entropy bonus in the reward, -coef * log pi per token: credit for later entropy too"
    )
    kl_coef: float = setting(
        0.005, "weight of the KL penalty (k1, per token, in the reward); 0: no reference"
    )
    adaptive_kl: bool = setting(False, "let the KL coefficient follow kl_target, starting at kl_coef")
    kl_target: float = setting(6.0, "KL to the reference to hold, nats per completion")
    kl_horizon: float = setting(10_000.0, "completions over which the coefficient adapts")
    target_kl: float | None = setting(
        None, "leave a rollout once the mean KL of its updates to the sampling policy exceeds it; null: never"
    )
    whiten_advantages: bool = setting(True, "advantages of a rollout to mean 0 and deviation 1")
    whiten_rewards: bool = setting(False, "token rewards of a rollout to deviation 1, their mean not moved")
    value_model: Literal["shared", "separate"] = setting(
        "shared", "critic: a head on the policy's hidden states, or a second copy of the start policy"
    )
    curriculum: CurriculumSettings = field(default_factory=CurriculumSettings)

    @property
    def updates_per_rollout(self) -> int:
        """Optimizer steps that a rollout lasts."""
        return self.num_ppo_epochs * self.num_mini_batches

    @property
    def sampled_completions(self) -> int:
        """Completions sampled in all, over all processes."""
        return self.num_rollouts * self.rollout_batch_size

    @property
    def num_prompts(self) -> int:
        """Prompts drawn in all, over all processes."""
        return self.sampled_completions // self.num_generations

    def validate(self) -> None:
        above(
            0,
            learning_rate=self.learning_rate,
            num_rollouts=self.num_rollouts,
            num_generations=self.num_generations,
            num_ppo_epochs=self.num_ppo_epochs,
            num_mini_batches=self.num_mini_batches,
            gradient_accumulation_steps=self.gradient_accumulation_steps,
            cliprange=self.cliprange,
            cliprange_value=self.cliprange_value,
            vf_coef=self.vf_coef,
            kl_target=self.kl_target,
            kl_horizon=self.kl_horizon,
        )
        above(0, value_learning_rate=self.value_learning_rate, target_kl=self.target_kl)
        at_least(
            0,
            warmup_steps=self.warmup_steps,
            weight_decay=self.weight_decay,
            entropy_coef=self.entropy_coef,
            entropy_reward_coef=self.entropy_reward_coef,
            kl_coef=self.kl_coef,
        )
        within(0, 1, gamma=self.gamma, lam=self.lam)
        if self.adaptive_kl and not self.kl_coef:
            raise ValueError("adaptive_kl multiplies kl_coef, which is 0: set kl_coef above 0")
        self._validate_batches()

    def _validate_batches(self) -> None:
        size, pieces = self.rollout_batch_size, self.num_mini_batches * self.gradient_accumulation_steps
        if size < 2:
            raise ValueError(f"rollout_batch_size must be at least 2, found {size}")
        if size % pieces:
            raise ValueError(
                f"rollout_batch_size ({size}) must be a multiple of num_mini_batches x "
                f"gradient_accumulation_steps ({pieces})"
            )
        if size % self.num_generations:
            raise ValueError(
                f"rollout_batch_size ({size}) must be a multiple of num_generations ({self.num_generations})"
            )


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
