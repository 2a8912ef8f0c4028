"""PPO's settings in TRL's conventions, as its trainer takes them."""

from __future__ import annotations

from dataclasses import dataclass, field

from trl import GRPOConfig

from utils.frame.files import UserError


@dataclass
class PPOConfig(GRPOConfig):
    """GRPOConfig with PPO's own settings; see `utils.methods.ppo.settings.PpoAlgo` for what each does.

    A rollout is `per_device_train_batch_size x gradient_accumulation_steps x num_mini_batches` completions
    per process. GRPO's settings of advantages, losses and rewards have no effect.
    """

    num_ppo_epochs: int = field(default=1, metadata={"help": "Passes over each rollout."})
    num_mini_batches: int = field(default=1, metadata={"help": "Optimizer steps per pass."})
    gamma: float = field(default=1.0, metadata={"help": "Discount."})
    lam: float = field(default=0.95, metadata={"help": "Lambda of GAE."})
    cliprange: float = field(default=0.2, metadata={"help": "Clip range of the ratio."})
    cliprange_value: float = field(default=0.2, metadata={"help": "Clip range of the values."})
    vf_coef: float = field(default=0.1, metadata={"help": "Weight of the value loss."})
    entropy_reward_coef: float = field(default=0.0, metadata={"help": "Entropy bonus in the reward."})
    kl_coef: float = field(default=0.05, metadata={"help": "Weight of the KL penalty; 0: no reference."})
    adaptive_kl: bool = field(default=False, metadata={"help": "Let the weight follow kl_target."})
    kl_target: float = field(default=6.0, metadata={"help": "KL to hold, nats per completion."})
    kl_horizon: float = field(default=10_000.0, metadata={"help": "Completions over which it adapts."})
    target_kl: float | None = field(default=None, metadata={"help": "Leaves a rollout above this KL."})
    whiten_advantages: bool = field(default=True, metadata={"help": "Whether to whiten advantages."})
    whiten_rewards: bool = field(default=False, metadata={"help": "Whether to scale token rewards."})
    value_learning_rate: float | None = field(default=None, metadata={"help": "None: learning_rate."})
    disable_dropout: bool = field(default=True, metadata={"help": "PPO's ratios need it off."})

    def __post_init__(self):
        if self.fp16:
            raise UserError("PPO runs in float32 or bfloat16: set model.torch_dtype")
        self.num_iterations = self.num_ppo_epochs
        self.steps_per_generation = self.num_mini_batches * self.gradient_accumulation_steps
        self.beta = self.kl_coef  # GRPOTrainer keeps a reference policy where beta is not 0
        asked = self.num_generations
        if asked == 1:  # GRPO has nothing to compare a single completion with; PPO has the critic
            self.num_generations = self.per_device_train_batch_size * self.steps_per_generation
        super().__post_init__()
        self.num_generations = asked
