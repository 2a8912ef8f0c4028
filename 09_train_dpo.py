"""09: direct preference optimisation (DPO) of the SFT policy on the pairs of 08.

    python 09_train_dpo.py [--reward combined|task|intrinsic] [--beta 0.1] [--loss_type ipo]

TRL's DPOTrainer (utils/methods/dpo/trainer.py). The reference is the SFT policy, whose log-probabilities of
the pairs are computed once. Greedy answers to validation items choose the best checkpoint, as in every
method.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from utils.frame.config import StageConfig, setting
from utils.frame.stage import Stage, StageContext, main
from utils.methods.dpo.settings import DpoAlgo
from utils.models.settings import ModelConfig
from utils.rewards.spec import DEFAULT_REWARD
from utils.training.inputs import sft_policy, variant

PANELS = {
    "loss": ["loss", "val_preference_loss"],
    "beta (log pi - log ref)": ["rewards/chosen", "rewards/rejected"],
    "margin: chosen - rejected": ["rewards/margins", "val_preference_margin"],
    "preference accuracy": ["rewards/accuracies", "val_preference_accuracy"],
    "validation": ["val_reward", "val_accuracy", "val_format_valid"],
    "log-probability (nats per completion)": ["logps/chosen", "logps/rejected"],
    "KL to the reference (nats per completion)": ["val_kl_sequence"],
    "KL to the reference (nats per token)": ["val_kl"],
    "entropy (nats per token)": ["entropy"],
    "completion length (tokens)": ["val_length"],
    "share of completions cut off": ["val_truncated"],
    "gradient norm": ["grad_norm"],
}


@dataclass
class Options:
    """Options of 09_train_dpo.py."""

    reward: Literal["combined", "task", "intrinsic"] = setting(
        DEFAULT_REWARD, "whose pairs of 08: those made by these parts of the reward; a folder 09_dpo_<reward>"
    )


def inputs(config: StageConfig, run_dir: Path) -> dict[str, Path]:
    suffix = f"_{variant(config)}" if variant(config) else ""
    pairs = run_dir / f"08_preferences{suffix}"
    return {
        "pairs": pairs / "pairs.jsonl",
        "val_pairs": pairs / "val_pairs.jsonl",
        "val": run_dir / "01_preprocessing" / "val.jsonl",
        "reward_spec": run_dir / "02_rewards" / "reward_spec.yaml",
        **sft_policy(run_dir),
    }


def run(ctx: StageContext) -> None:
    from utils.methods.dpo.build import train_dpo

    train_dpo(ctx, PANELS)


STAGE = Stage(
    number="09",
    folder="09_dpo",
    summary="Improve the SFT policy by DPO on preference pairs.",
    reads="08_preferences/{pairs,val_pairs}.jsonl, 01_preprocessing/val.jsonl, 02_rewards/reward_spec.yaml, "
    "03_sft/ckpt_sft/best",
    writes="09_dpo/: ckpt_dpo/{best,final,step_N}, logs/{metrics.jsonl,curves.png}, valid_samples/",
    tiers={
        "model": (ModelConfig, "configs/models/sample.yaml"),
        "algo": (DpoAlgo, "configs/algorithms/dpo.yaml"),
    },
    options=Options,
    inputs=inputs,
    variant=variant,
    several_processes=True,
    quick={
        "algo.max_steps": 4,
        "algo.per_device_train_batch_size": 8,
        "model.training.save_steps": 2,
        "model.validation.eval_steps": 2,
        "model.validation.num_items": 8,
    },
)

if __name__ == "__main__":
    main(STAGE, run)
