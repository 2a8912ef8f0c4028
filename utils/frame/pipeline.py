"""The one table of the pipeline: stages, scripts, variants, policies and what trains what."""

from __future__ import annotations

from typing import Literal

CURRICULA = ("random", "easy_to_hard", "hard_to_easy", "sec", "pass_rate")


DEFAULT_CURRICULUM = "random"


CurriculumName = Literal["random", "easy_to_hard", "hard_to_easy", "sec", "pass_rate"]  # for options


# Which script writes which folder of a run; a variant's folder is the stage's name plus "_<variant>".
SCRIPTS = {
    "00_data_validation": "00_check_data.py",
    "01_preprocessing": "01_prepare_dataset.py",
    "02_rewards": "02_build_rewards.py",
    "03_sft": "03_sft_train.py",
    "03_distill": "03_sft_train.py",
    "04_candidates": "04_generate_candidates.py",
    "05_ppo": "05_train_ppo.py",
    "06_grpo": "06_train_grpo.py",
    "07_rloo": "07_train_rloo.py",
    "08_preferences": "08_build_prefs.py",
    "09_dpo": "09_train_dpo.py",
    "10_evaluation": "10_evaluate.py",
    "11_comparison": "11_compare_runs.py",
}


# The option that makes a script write this folder, where it can write several.
OBJECTIVES = {"03_distill": ["--objective", "distill"]}


# The option that makes a stage write its folder "<stage>_<variant>"; a reward comes before a curriculum.
VARIANTS = {
    "task": ["--reward", "task"],
    "intrinsic": ["--reward", "intrinsic"],
    "combined": ["--reward", "combined"],
    "audit": ["--audit"],
    **{name: ["--curriculum", name] for name in CURRICULA},
}


# Stages that hold one sub-folder per variant in place of one suffixed folder.
NESTED = frozenset({"10_evaluation"})


POLICIES = ("base", "sft", "teacher", "distill", "ppo", "grpo", "rloo", "dpo")


# The stage folder that trains each policy; its best checkpoint is ckpt_<method>/best.
TRAINED_IN = {
    "sft": "03_sft",
    "distill": "03_distill",
    "ppo": "05_ppo",
    "grpo": "06_grpo",
    "rloo": "07_rloo",
    "dpo": "09_dpo",
}


def policy_order(name: str) -> tuple[int, str]:
    """Sort key: the methods in the order of the pipeline, each before its variants, then other names."""
    base = name.rsplit("/", 1)[-1]
    for position, policy in enumerate(POLICIES):
        if base == policy or base.startswith(policy + "_"):
            return position, name
    return len(POLICIES), name
