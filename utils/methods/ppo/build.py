"""PPO of the SFT policy: its settings in TRL's conventions, and the trainer for a stage's configuration.

The method itself is in `ppo_trainer.py` (rollouts and updates), `ppo_math.py` and `value.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from utils.data.records import Record
from utils.frame.stage import StageContext
from utils.methods.ppo.config import PPOConfig
from utils.methods.ppo.settings import PpoAlgo
from utils.methods.ppo.trainer import PPOTrainer
from utils.models.loading import load_policy
from utils.models.settings import ModelConfig
from utils.models.vllm.sampler import vllm_arguments
from utils.rewards.spec import RewardSpec
from utils.rollouts.batches import share_batches
from utils.rollouts.follows_curriculum import follow_curriculum
from utils.rollouts.start import Start
from utils.training.run import trainer_arguments

__all__ = ["PPOConfig", "PPOTrainer", "build_ppo_trainer"]


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
    trainer.prompt_tokens = start.rewards.prompt_tokens
    follow_curriculum(ctx, trainer, records, algo.num_rollouts)
    return trainer, start.tokenizer
