"""The settings of PPO (configs/algorithms/ppo.yaml). Light to import."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from utils.frame.typed_settings import setting
from utils.rollouts.settings import RewardedAlgo
from utils.training.settings import TuningRecord


@dataclass
class PpoUpdates:
    """How PPO learns from a rollout: what `PPOConfig` takes as it is."""

    value_learning_rate: float | None = setting(
        None, "peak learning rate of the critic; null: learning_rate", above=0
    )
    num_ppo_epochs: int = setting(2, "passes over each rollout", above=0)
    num_mini_batches: int = setting(2, "optimizer steps per pass", above=0)
    gamma: float = setting(1.0, "discount", between=(0, 1))
    lam: float = setting(1.0, "lambda of generalised advantage estimation; 1: full returns", between=(0, 1))
    lam_value: float | None = setting(
        None, "lambda of the returns that the critic learns (VC-PPO: 1); null: lam", between=(0, 1)
    )
    lam_length: float | None = setting(
        None, "length-adaptive lam, 1 - 1/(lam_length * tokens) (VAPO: 0.05); null: lam", above=0
    )
    cliprange: float = setting(0.2, "clip range of the probability ratio", above=0)
    cliprange_high: float | None = setting(
        None, "upper clip range (clip-higher: 0.28); null: cliprange", above=0
    )
    dual_clip: float | None = setting(
        None, "most that a ratio weighs where the advantage is negative (3 is usual); null: no limit", above=1
    )
    cliprange_value: float = setting(
        0.2, "how far a value may move from the rollout's without being clipped", above=0
    )
    vf_coef: float = setting(0.1, "weight of the value loss", above=0)
    critic_warmup_rollouts: int = setting(
        0, "first rollouts, out of all, that train the critic alone", at_least=0
    )
    critic_target: Literal["returns", "residual"] = setting(
        "returns", "residual: the critic learns what the siblings' values leave unexplained"
    )
    critic_gradient: Literal["trunk", "head"] = setting(
        "trunk", "how far the value loss of a shared critic reaches"
    )
    sibling_shrinkage: float = setting(1.0, "siblings that the mean of the group counts for", above=0)
    group_shrinkage: float = setting(
        8.0, "completions of a group that the mean of the other prompts counts for", at_least=0
    )
    entropy_coef: float = setting(
        0.0, "weight of the entropy bonus in the loss: of each token alone", at_least=0
    )
    entropy_reward_coef: float = setting(
        0.0, "entropy bonus in the reward, -coef * log pi per token: credit for later entropy too", at_least=0
    )
    positive_nll_coef: float = setting(
        0.0, "weight of the likelihood of right completions in the loss, per token of theirs", at_least=0
    )
    kl_coef: float = setting(
        0.005, "weight of the KL penalty (k1, per token, in the reward); 0: no reference", at_least=0
    )
    adaptive_kl: bool = setting(False, "let the KL coefficient follow kl_target, starting at kl_coef")
    kl_target: float = setting(6.0, "KL to the reference to hold, nats per completion", above=0)
    kl_horizon: float = setting(10_000.0, "completions over which the coefficient adapts", above=0)
    target_kl: float | None = setting(
        None,
        "leave a rollout once the mean KL of its updates to the sampling policy exceeds it; null: never",
        above=0,
    )
    whiten_advantages: bool = setting(True, "advantages of a rollout to mean 0 and deviation 1")
    whiten_rewards: bool = setting(False, "token rewards of a rollout to deviation 1, their mean not moved")


@dataclass
class PpoAlgo(PpoUpdates, RewardedAlgo):
    """Proximal policy optimisation on tokens (Schulman et al. 2017, arXiv 1707.06347).

    A rollout of ``rollout_batch_size`` completions is passed over ``num_ppo_epochs`` times, each time in
    ``num_mini_batches`` optimizer steps of ``gradient_accumulation_steps`` micro-batches.
    """

    rollout_batch_size: int = setting(128, "completions per rollout", at_least=2)
    num_generations: int = setting(
        8, "completions per prompt; 1 is allowed, the critic is the baseline", above=0
    )
    value_model: Literal["siblings", "shared", "separate"] = setting(
        "siblings",
        "values: of the completions that share the prefix, without a critic; or by a critic, a head on the "
        "policy's hidden states or on a second copy of the start policy",
    )

    tuning: TuningRecord = field(  # docs/log.md
        default_factory=lambda: TuningRecord(trials=3, chosen_on="explained variance with seed 0")
    )

    size_option: ClassVar[str] = "rollout_batch_size"

    @property
    def num_iterations(self) -> int:
        """Passes over each rollout, as TRL names them."""
        return self.num_ppo_epochs

    @property
    def steps_per_generation(self) -> int:
        """Micro-batches a rollout is split into."""
        return self.num_mini_batches * self.gradient_accumulation_steps

    @property
    def per_device_train_batch_size(self) -> int:
        """Completions per micro-batch, over all processes."""
        return self.rollout_batch_size // self.steps_per_generation

    def validate(self) -> None:
        self._validate_values()
        if self.adaptive_kl and not self.kl_coef:
            raise ValueError("adaptive_kl multiplies kl_coef, which is 0: set kl_coef above 0")
        size, pieces = self.rollout_batch_size, self.steps_per_generation
        if size % pieces:
            raise ValueError(
                f"rollout_batch_size ({size}) must be a multiple of num_mini_batches x "
                f"gradient_accumulation_steps ({pieces})"
            )
        super().validate()

    def _validate_values(self) -> None:
        siblings = self.value_model == "siblings"
        if siblings and (self.critic_warmup_rollouts or self.critic_target == "residual"):
            name = "critic_warmup_rollouts" if self.critic_warmup_rollouts else "critic_target residual"
            raise ValueError(f"{name} needs a critic: set value_model to shared or separate")
        if (siblings or self.critic_target == "residual") and self.num_generations < 2:
            raise ValueError("siblings are other completions of a prompt: set num_generations above 1")
        if self.critic_warmup_rollouts >= self.num_rollouts:
            raise ValueError(
                f"critic_warmup_rollouts ({self.critic_warmup_rollouts}) leaves none of num_rollouts "
                f"({self.num_rollouts}) to the policy"
            )
