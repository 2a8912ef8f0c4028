"""PPO of the SFT policy: its settings in TRL's conventions, and the trainer for a stage's configuration.

The method itself is in `ppo_trainer.py` (rollouts and updates), `ppo_math.py` and `value.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase
from trl import GRPOConfig

from utils.common import UserError
from utils.data.records import Record
from utils.model_tier import ModelConfig
from utils.models.loading import load_policy
from utils.models.vllm_sampling import vllm_arguments
from utils.rewards.spec import RewardSpec
from utils.stage import StageContext
from utils.training.batches import share_batches
from utils.training.follows_curriculum import follow_curriculum
from utils.training.outcome_rewards import Start
from utils.training.ppo_trainer import PPOTrainer
from utils.training.running import trainer_arguments
from utils.training.settings import PpoAlgo

__all__ = ["PPOConfig", "PPOTrainer", "build_ppo_trainer"]


@dataclass
class PPOConfig(GRPOConfig):
    """GRPOConfig with PPO's own settings; see `utils.training.settings.PpoAlgo` for what each does.

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


def build_ppo_trainer(
    ctx: StageContext, records: Sequence[Record], spec: RewardSpec
) -> tuple[PPOTrainer, PreTrainedTokenizerBase]:
    """The trainer for ``ctx``'s configuration, starting from the SFT policy, which is also the reference.

    Raises UserError as `Start.of` and `follow_curriculum`.
    """
    model_config: ModelConfig = ctx.config.model
    algo: PpoAlgo = ctx.config.algo
    start = Start.of(ctx, records, spec, gamma=algo.gamma)
    batches = share_batches(
        algo.rollout_batch_size // (algo.num_mini_batches * algo.gradient_accumulation_steps),
        algo.gradient_accumulation_steps,
        algo.num_mini_batches * algo.gradient_accumulation_steps,
        group=algo.num_generations,
        largest=model_config.training.max_micro_batch,
    )
    arguments = PPOConfig(
        **trainer_arguments(ctx, algo.updates_per_rollout),
        learning_rate=algo.learning_rate,
        value_learning_rate=algo.value_learning_rate,
        lr_scheduler_type=algo.lr_scheduler_type,
        warmup_steps=algo.warmup_steps,
        weight_decay=algo.weight_decay,
        max_steps=algo.num_rollouts * algo.updates_per_rollout,
        **batches.arguments(),
        num_generations=algo.num_generations,
        num_ppo_epochs=algo.num_ppo_epochs,
        num_mini_batches=algo.num_mini_batches,
        gamma=algo.gamma,
        lam=algo.lam,
        cliprange=algo.cliprange,
        cliprange_value=algo.cliprange_value,
        vf_coef=algo.vf_coef,
        entropy_coef=algo.entropy_coef,
        entropy_reward_coef=algo.entropy_reward_coef,
        kl_coef=algo.kl_coef,
        adaptive_kl=algo.adaptive_kl,
        kl_target=algo.kl_target,
        kl_horizon=algo.kl_horizon,
        target_kl=algo.target_kl,
        whiten_advantages=algo.whiten_advantages,
        whiten_rewards=algo.whiten_rewards,
        max_completion_length=model_config.generation.max_new_tokens,
        temperature=model_config.generation.temperature,
        top_p=model_config.generation.top_p,
        top_k=model_config.generation.top_k,
        **vllm_arguments(ctx, correction=True),
    )
    critic = None
    if algo.value_model == "separate":
        critic, _ = load_policy(ctx.inputs["checkpoint"], model_config.model, trainable=True)
    trainer = PPOTrainer(
        model=start.model,
        pipeline=start.pipeline,
        args=arguments,
        train_dataset=start.dataset,
        processing_class=start.tokenizer,
        value_model=critic,
    )
    follow_curriculum(ctx, trainer, records, algo.num_rollouts)
    return trainer, start.tokenizer
