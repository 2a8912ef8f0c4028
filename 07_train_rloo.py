"""07: REINFORCE leave-one-out (RLOO) of the SFT policy.

    python 07_train_rloo.py [--reward combined|task|intrinsic] [--baseline_type loo|mean|none]
    python 07_train_rloo.py --curriculum easy_to_hard|hard_to_easy|sec|pass_rate [--curriculum.tau 0.4]

TRL's RLOOTrainer with shared prefixes (utils/rollouts/shared_prefix_trainer.py). The reference is the SFT
policy, and the KL to it is part of the reward. Greedy answers to validation items choose the best checkpoint.
In this stage save_steps, logging_steps and eval_steps count rollouts.
"""

from dataclasses import dataclass
from typing import Literal

from utils.frame.config import setting
from utils.frame.pipeline import DEFAULT_CURRICULUM, CurriculumName
from utils.frame.stage import Stage, StageContext, main
from utils.methods.rloo.settings import RlooAlgo
from utils.models.settings import ModelConfig
from utils.rewards.spec import DEFAULT_REWARD
from utils.training.inputs import rollout_inputs, variant

PANELS = {
    "mean reward of the rollout": ["reward", "train_accuracy"],
    "reward components": [
        "rewards/exact_match/mean",
        "rewards/numeric_match/mean",
        "rewards/program_partial/mean",
        "rewards/format_penalty/mean",
        "rewards/reasoning/mean",
        "rewards/intrinsic/mean",
    ],
    "adaptive weights": ["weights/intrinsic", "weights/reasoning"],
    "validation": ["val_reward", "val_accuracy", "val_format_valid"],
    "baseline": ["baselines/mean"],
    "size of the advantage": ["advantages/abs_mean"],
    "KL to the reference (nats per token)": ["kl"],
    "KL to the reference (nats per completion)": ["kl_sequence"],
    "entropy (nats per token)": ["entropy"],
    "share of completions clipped": ["clip_ratio/region_mean"],
    "share of groups without signal": ["frac_reward_zero_std"],
    "completion length (tokens)": ["completions/mean_length", "val_length"],
    "share of completions cut off": ["completions/clipped_ratio", "val_truncated"],
    "gradient norm": ["grad_norm"],
}


@dataclass
class Options:
    """Options of 07_train_rloo.py."""

    reward: Literal["combined", "task", "intrinsic"] = setting(
        DEFAULT_REWARD,
        "which parts of the reward specification are paid; a folder 07_rloo_<reward> for others",
    )
    curriculum: CurriculumName = setting(
        DEFAULT_CURRICULUM,
        "which prompts to learn from next (docs/curricula.md); a folder 07_rloo_<curriculum> for others",
    )


def run(ctx: StageContext) -> None:
    from utils.methods.rloo.trainer import build_rloo_trainer
    from utils.rollouts.shared_prefix_trainer import updates_per_rollout
    from utils.training.run import train_stage

    train_stage(
        ctx,
        "rloo",
        lambda records, spec: build_rloo_trainer(ctx, records, spec),
        PANELS,
        unit=updates_per_rollout(ctx.config.algo),
    )


STAGE = Stage(
    number="07",
    folder="07_rloo",
    summary="Improve the SFT policy by RLOO.",
    reads="01_preprocessing/{train,val}.jsonl, 02_rewards/reward_spec.yaml, 03_sft/ckpt_sft/best, teacher",
    writes="07_rloo/: ckpt_rloo/{best,final,step_N}, valid_samples/, "
    "logs/{metrics.jsonl,rollouts.jsonl,curves.png}; "
    "with --curriculum: logs/curriculum.{jsonl,png}",
    tiers={
        "model": (ModelConfig, "configs/models/sample.yaml"),
        "algo": (RlooAlgo, "configs/algorithms/rloo.yaml"),
    },
    options=Options,
    inputs=rollout_inputs,
    variant=variant,
    several_processes=True,
    quick={
        "algo.num_rollouts": 4,
        "algo.per_device_train_batch_size": 8,
        "model.training.save_steps": 2,
        "model.validation.eval_steps": 2,
        "model.validation.num_items": 8,
    },
)

if __name__ == "__main__":
    main(STAGE, run)
