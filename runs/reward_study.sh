#!/usr/bin/env bash
# The reward study on the embedded default: SFT, PPO on three rewards and GRPO, three seeds, the same number of
# sampled completions for each; then one comparison over the seeds. About an hour on two cores.
#
#     ./setup.sh runs/reward_study.sh            # all seeds, one after the other
#     ./setup.sh runs/reward_study.sh 0          # one seed (several machines or cores: one each)
#     ./setup.sh runs/reward_study.sh compare    # the comparison alone
set -euo pipefail
cd "$(dirname "$0")/.."

train() {
    local seed=$1
    for reward in combined task intrinsic; do
        python 12_driver.py --method ppo --reward "$reward" --seed "$seed" --run_id "reward_study_$seed"
    done
    python 12_driver.py --method grpo --reward task --seed "$seed" --run_id "reward_study_$seed"
}

compare() {
    python 11_compare_runs.py --run_id reward_study --by_seed true \
        --runs reward_study_0,reward_study_1,reward_study_2 \
        --policies sft,ppo,ppo_task,ppo_intrinsic,grpo_task --overwrite
}

case "${1:-all}" in
    all) for seed in 0 1 2; do train "$seed"; done; compare ;;
    compare) compare ;;
    *) train "$1" ;;
esac
