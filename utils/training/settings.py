"""Algorithm tiers: the hyper-parameters of each method. Light to import: the driver reads them all.

Names are those of TRL's configs (SFTConfig, GRPOConfig).
"""

from dataclasses import dataclass
from typing import Literal

from utils.config import setting


def _positive(**values: float) -> None:
    for name, value in values.items():
        if value <= 0:
            raise ValueError(f"{name} must be above 0, found {value}")


@dataclass
class SftAlgo:
    """Supervised fine-tuning on demonstrations, loss on completions only (configs/algorithms/sft.yaml)."""

    learning_rate: float = setting(1e-3, "peak learning rate of AdamW")
    lr_scheduler_type: str = setting("cosine", "schedule after warm-up, as Transformers names it")
    warmup_steps: int = setting(10, "optimizer steps of linear warm-up")
    num_train_epochs: float = setting(1.0, "passes over the training set, unless max_steps is given")
    max_steps: int = setting(-1, "optimizer steps; -1: as many as num_train_epochs takes")
    per_device_train_batch_size: int = setting(32, "sequences per micro-batch and device")
    gradient_accumulation_steps: int = setting(1, "micro-batches per optimizer step")
    weight_decay: float = setting(0.0, "AdamW's decoupled weight decay")

    def validate(self) -> None:
        _positive(
            learning_rate=self.learning_rate,
            num_train_epochs=self.num_train_epochs,
            per_device_train_batch_size=self.per_device_train_batch_size,
            gradient_accumulation_steps=self.gradient_accumulation_steps,
        )


@dataclass
class GrpoAlgo:
    """Group-relative policy optimisation (Shao et al. 2024, arXiv 2402.03300; configs/algorithms/grpo.yaml).

    A rollout holds ``per_device_train_batch_size * steps_per_generation`` completions per device,
    ``num_generations`` of each prompt, and is used for ``num_iterations`` passes. (Where
    ``gradient_accumulation_steps`` is more than a rollout serves, what one optimizer step takes counts as one
    rollout.) In this stage the model tier's ``training.save_steps``, ``training.logging_steps`` and
    ``validation.eval_steps`` count rollouts.
    """

    learning_rate: float = setting(5e-4, "peak learning rate of AdamW")
    lr_scheduler_type: str = setting("constant_with_warmup", "schedule, as Transformers names it")
    warmup_steps: int = setting(5, "optimizer steps of linear warm-up")
    num_rollouts: int = setting(64, "rollouts in all")
    per_device_train_batch_size: int = setting(64, "completions per micro-batch and device")
    gradient_accumulation_steps: int = setting(1, "micro-batches per optimizer step")
    steps_per_generation: int = setting(2, "micro-batches a rollout is split into")
    num_generations: int = setting(8, "completions per prompt (G)")
    num_iterations: int = setting(2, "passes over each rollout (mu)")
    beta: float = setting(0.0, "weight of the KL penalty to the reference policy")
    epsilon: float = setting(0.2, "clip range of the probability ratio")
    epsilon_high: float | None = setting(None, "upper clip range; null: epsilon")
    loss_type: Literal["grpo", "dr_grpo", "dapo", "bnpo"] = setting("dapo", "how token losses are averaged")
    scale_rewards: Literal["group", "batch", "none"] = setting("group", "what advantages are divided by")
    importance_sampling_level: Literal["token", "sequence"] = setting("token", "level of the ratio")
    mask_truncated_completions: bool = setting(False, "leave completions without an end out of the loss")
    weight_decay: float = setting(0.0, "AdamW's decoupled weight decay")

    def validate(self) -> None:
        _positive(
            learning_rate=self.learning_rate,
            num_rollouts=self.num_rollouts,
            per_device_train_batch_size=self.per_device_train_batch_size,
            gradient_accumulation_steps=self.gradient_accumulation_steps,
            steps_per_generation=self.steps_per_generation,
            num_iterations=self.num_iterations,
            epsilon=self.epsilon,
        )
        if self.num_generations < 2:
            raise ValueError(
                f"num_generations must be at least 2 to compare within a group, found {self.num_generations}"
            )
        if self.beta < 0:
            raise ValueError(f"beta must be at least 0, found {self.beta}")
        rollout = self.per_device_train_batch_size * self.steps_per_generation
        if rollout % self.num_generations:
            raise ValueError(
                f"per_device_train_batch_size x steps_per_generation ({rollout}) must be a multiple of "
                f"num_generations ({self.num_generations})"
            )


@dataclass
class PpoAlgo:
    """Proximal policy optimisation on tokens (Schulman et al. 2017; configs/algorithms/ppo.yaml).

    ``num_rollouts`` rollouts of ``rollout_batch_size`` completions per device, ``num_generations`` of each
    prompt. A rollout is passed over ``num_ppo_epochs`` times, each time in ``num_mini_batches`` optimizer
    steps of ``gradient_accumulation_steps`` micro-batches. In this stage the model tier's
    ``training.save_steps``, ``training.logging_steps`` and ``validation.eval_steps`` count rollouts.
    """

    learning_rate: float = setting(1e-3, "peak learning rate of AdamW")
    value_learning_rate: float | None = setting(None, "peak learning rate of the critic; null: learning_rate")
    lr_scheduler_type: str = setting("linear", "schedule, as Transformers names it")
    warmup_steps: int = setting(5, "optimizer steps of linear warm-up")
    weight_decay: float = setting(0.0, "AdamW's decoupled weight decay")
    num_rollouts: int = setting(64, "rollouts in all")
    rollout_batch_size: int = setting(128, "completions per rollout and device")
    num_generations: int = setting(8, "completions per prompt; 1 is allowed, the critic is the baseline")
    num_ppo_epochs: int = setting(2, "passes over each rollout")
    num_mini_batches: int = setting(2, "optimizer steps per pass")
    gradient_accumulation_steps: int = setting(1, "micro-batches per optimizer step")
    gamma: float = setting(1.0, "discount")
    lam: float = setting(0.95, "lambda of generalised advantage estimation; 1: full returns")
    cliprange: float = setting(0.2, "clip range of the probability ratio")
    cliprange_value: float = setting(0.2, "how far a value may move from the rollout's without being clipped")
    vf_coef: float = setting(0.1, "weight of the value loss")
    entropy_coef: float = setting(0.0, "weight of the entropy bonus")
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

    @property
    def updates_per_rollout(self) -> int:
        """Optimizer steps that a rollout lasts."""
        return self.num_ppo_epochs * self.num_mini_batches

    def validate(self) -> None:
        _positive(
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
        for name in ("value_learning_rate", "target_kl"):
            if getattr(self, name) is not None:
                _positive(**{name: getattr(self, name)})
        for name in ("warmup_steps", "weight_decay", "entropy_coef", "kl_coef"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, found {getattr(self, name)}")
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, found {getattr(self, name)}")
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
