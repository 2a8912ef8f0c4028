"""05: proximal policy optimisation (PPO) of the SFT policy, with a reward for every token.

    python 05_train_ppo.py [--reward combined|task|intrinsic] [--learning_rate 5e-4] [--num_ppo_epochs 2]
    python 05_train_ppo.py --curriculum easy_to_hard|hard_to_easy|sec|pass_rate [--curriculum.tau 0.4]
    python 05_train_ppo.py --diagnose DIR [--json FILE]

The intrinsic reward is read from the teacher's logits (utils/rewards/intrinsic.py); the task reward is paid
on the last token. The reference is the SFT policy. Greedy answers to validation items choose the best
checkpoint. In this stage save_steps, logging_steps and eval_steps count rollouts.

``--diagnose`` only reads: what is healthy in a training folder's log, of any method, and what is not.
"""

import sys
from dataclasses import dataclass
from typing import Literal

from utils.frame.command_line import wants_help
from utils.frame.config import setting
from utils.frame.pipeline import DEFAULT_CURRICULUM, CurriculumName
from utils.frame.stage import Stage, StageContext, main
from utils.methods.ppo.settings import PpoAlgo
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
    "return and value (per token)": ["returns/mean", "values/mean"],
    "explained variance": ["explained_variance"],
    "KL to the reference (nats per token)": ["kl"],
    "KL to the reference (nats per completion)": ["kl_sequence"],
    "KL coefficient": ["kl_coef"],
    "KL to the sampling policy (nats per token)": ["approx_kl"],
    "share of tokens clipped": ["clip_ratio/policy", "clip_ratio/value"],
    "updates skipped": ["updates_skipped"],
    "entropy (nats per token)": ["entropy"],
    "policy loss": ["loss/policy"],
    "value loss": ["loss/value"],
    "completion length (tokens)": ["completions/mean_length", "val_length"],
    "share of completions cut off": ["completions/clipped_ratio", "val_truncated"],
    "gradient norm": ["grad_norm", "grad_norm/value"],
}


@dataclass
class Options:
    """Options of 05_train_ppo.py."""

    reward: Literal["combined", "task", "intrinsic"] = setting(
        DEFAULT_REWARD,
        "which parts of the reward specification are paid; a folder 05_ppo_<reward> for others",
    )
    curriculum: CurriculumName = setting(
        DEFAULT_CURRICULUM,
        "which prompts to learn from next (docs/curricula.md); a folder 05_ppo_<curriculum> for others",
    )


def run(ctx: StageContext) -> None:
    from utils.methods.ppo.build import build_ppo_trainer
    from utils.training.run import train_stage

    unit = ctx.config.algo.updates_per_rollout
    train_stage(ctx, "ppo", lambda records, spec: build_ppo_trainer(ctx, records, spec), PANELS, unit)


STAGE = Stage(
    number="05",
    folder="05_ppo",
    summary="Improve the SFT policy by PPO, with token rewards read from the teacher's logits. With "
    "--diagnose DIR [--json FILE]: say what is healthy in any method's training folder, and do nothing else.",
    reads="01_preprocessing/{train,val}.jsonl, 02_rewards/reward_spec.yaml, 03_sft/ckpt_sft/best, teacher",
    writes="05_ppo/: ckpt_ppo/{best,final,step_N}, logs/{metrics.jsonl,curves.png}, valid_samples/; "
    "with --curriculum: logs/curriculum.{jsonl,png}",
    tiers={
        "model": (ModelConfig, "configs/models/sample.yaml"),
        "algo": (PpoAlgo, "configs/algorithms/ppo.yaml"),
    },
    options=Options,
    inputs=rollout_inputs,
    variant=variant,
    several_processes=True,
    quick={
        "algo.num_rollouts": 4,
        "algo.rollout_batch_size": 16,
        "model.training.save_steps": 2,
        "model.validation.eval_steps": 2,
        "model.validation.num_items": 8,
    },
)

if __name__ == "__main__":
    if any(word.startswith("--diagnose") for word in sys.argv) and not wants_help(sys.argv):
        from utils.training.health.diagnose import diagnose_command

        sys.exit(diagnose_command(sys.argv[1:]))
    main(STAGE, run)
