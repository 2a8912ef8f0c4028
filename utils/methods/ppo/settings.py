"""The settings of PPO (configs/algorithms/ppo.yaml). Light to import."""

from dataclasses import dataclass, field
from typing import Literal

from utils.curricula.settings import CurriculumSettings
from utils.frame.config import setting
from utils.frame.typed_settings import above, at_least, within


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
