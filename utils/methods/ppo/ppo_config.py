"""PPO's settings in TRL's conventions, as its trainer takes them."""

from __future__ import annotations

from dataclasses import dataclass, field

from trl import GRPOConfig

from utils.frame.files import UserError
from utils.methods.ppo.settings import PpoUpdates


@dataclass
class PPOConfig(PpoUpdates, GRPOConfig):
    """GRPOConfig with PPO's own settings, their defaults included.

    A rollout is `per_device_train_batch_size x gradient_accumulation_steps x num_mini_batches` completions
    per process. GRPO's settings of advantages, losses and rewards have no effect.
    """

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
