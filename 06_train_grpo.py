"""06: group-relative policy optimisation (GRPO) of the SFT policy on the task reward.

    python 06_train_grpo.py [--learning_rate 5e-4] [--num_iterations 2] [--beta 0.02]

TRL's GRPOTrainer with shared prefixes (utils/training/shared_prefix_mixin.py). The reference is the SFT
policy. Greedy answers to validation items choose the best checkpoint.
"""

from pathlib import Path

from utils.config import ModelConfig, StageConfig
from utils.stage import NoOptions, Stage, StageContext, main
from utils.training.policy_inputs import sft_policy, training_inputs
from utils.training.settings import GrpoAlgo

PANELS = {
    "mean reward of the rollout": ["reward", "train_accuracy"],
    "reward components": [
        "rewards/exact_match/mean",
        "rewards/numeric_match/mean",
        "rewards/program_partial/mean",
        "rewards/format_penalty/mean",
    ],
    "validation": ["val_reward", "val_accuracy", "val_format_valid"],
    "KL to the reference (nats per token)": ["kl"],
    "entropy (nats per token)": ["entropy"],
    "share of tokens clipped": ["clip_ratio/region_mean"],
    "share of groups without signal": ["frac_reward_zero_std"],
    "completion length (tokens)": ["completions/mean_length", "val_length"],
    "gradient norm": ["grad_norm"],
}


def inputs(config: StageConfig, run_dir: Path) -> dict[str, Path]:
    return training_inputs(run_dir) | sft_policy(run_dir)


def run(ctx: StageContext) -> None:
    from utils.training.grpo import build_grpo_trainer
    from utils.training.running import train_stage

    train_stage(ctx, "grpo", lambda records, spec: build_grpo_trainer(ctx, records, spec), PANELS)


STAGE = Stage(
    number="06",
    folder="06_grpo",
    summary="Improve the SFT policy by GRPO on the task reward.",
    reads="01_preprocessing/{train,val}.jsonl, 02_rewards/reward_spec.yaml, 03_sft/ckpt_sft/best",
    writes="06_grpo/: ckpt_grpo/{best,final,step_N}, logs/{metrics.jsonl,curves.png}, valid_samples/",
    tiers={
        "model": (ModelConfig, "configs/models/sample.yaml"),
        "algo": (GrpoAlgo, "configs/algorithms/grpo.yaml"),
    },
    options=NoOptions,
    inputs=inputs,
    quick={
        "algo.max_steps": 4,
        "algo.per_device_train_batch_size": 16,
        "model.training.save_steps": 2,
        "model.validation.eval_steps": 2,
        "model.validation.num_items": 8,
    },
)

if __name__ == "__main__":
    main(STAGE, run)
