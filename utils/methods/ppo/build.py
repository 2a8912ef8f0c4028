"""PPO of the SFT policy as a stage: its start and its trainer (`trainer.py`)."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from utils.data.records import Record
from utils.frame.stage import StageContext
from utils.methods.ppo.ppo_config import PPOConfig
from utils.methods.ppo.settings import PpoAlgo
from utils.methods.ppo.trainer import PPOTrainer
from utils.rewards.spec import RewardSpec
from utils.rollouts.follows_curriculum import follow_curriculum
from utils.rollouts.panels import ADAPTED, CUT_OFF, LENGTH, PHANTOM, REWARDS, VALIDATION
from utils.rollouts.start import Start, rollout_arguments
from utils.training.load_start import load_start

__all__ = ["PPOConfig", "PPOTrainer", "build_ppo_trainer"]

PANELS = {
    **REWARDS,
    **ADAPTED,
    **VALIDATION,
    "return and value (per token)": ["returns/mean", "values/mean"],
    "explained variance of returns": [
        "explained_variance/lambda_1",
        "explained_variance/lambda_1/siblings",
        "explained_variance/lambda_1/group_mean",
    ],
    "KL to the reference (nats per token)": ["kl"],
    "KL to the reference (nats per completion)": ["kl_sequence"],
    "KL coefficient": ["kl_coef"],
    "KL to the sampling policy (nats per token)": ["approx_kl"],
    "share of tokens clipped": ["clip_ratio/policy", "clip_ratio/value"],
    "updates skipped": ["updates_skipped"],
    "entropy (nats per token)": ["entropy"],
    "policy loss": ["loss/policy"],
    "value loss": ["loss/value"],
    **PHANTOM,
    **LENGTH,
    **CUT_OFF,
    "gradient norm": ["grad_norm", "grad_norm/value"],
}


def build_ppo_trainer(
    ctx: StageContext, records: Sequence[Record], spec: RewardSpec
) -> tuple[PPOTrainer, PreTrainedTokenizerBase]:
    """The trainer for ``ctx``'s configuration, starting from the SFT policy, which is also the reference.

    Raises UserError as `Start.of` and `follow_curriculum`.
    """
    algo: PpoAlgo = ctx.config.algo
    start = Start.of(ctx, records, spec, gamma=algo.gamma)
    arguments = PPOConfig(**rollout_arguments(ctx, PPOConfig, correction=True))
    critic = None
    if algo.value_model == "separate":
        critic, _ = load_start(ctx)
    trainer = PPOTrainer(
        model=start.model,
        pipeline=start.pipeline,
        args=arguments,
        train_dataset=start.dataset,
        processing_class=start.tokenizer,
        value_model=critic,
        siblings=algo.value_model == "siblings",
    )
    trainer.prompt_tokens = start.rewards.prompt_tokens
    trainer.filter_groups(algo)
    follow_curriculum(ctx, trainer, records, algo.num_rollouts)
    return trainer, start.tokenizer
