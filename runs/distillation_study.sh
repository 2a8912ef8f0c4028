#!/usr/bin/env bash
# On-policy reverse-KL distillation against PPO on the teacher's log-probabilities with the entropy bonus that makes
# the two objectives one (docs/distillation_study.md); three seeds, 8,192 completions each.
#
#     ./setup.sh runs/distillation_study.sh
set -euo pipefail
cd "$(dirname "$0")/.."

# The shipped specification gives the intrinsic reward weight 0.1 at alpha 1: the same weight for the entropy.
python 12_driver.py --method distill ppo --reward intrinsic --seeds 0 1 2 --run_id distillation \
    --ppo.kl_coef 0 --ppo.entropy_reward_coef 0.1
