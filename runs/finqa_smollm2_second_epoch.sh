#!/usr/bin/env bash
# What a second epoch of SFT gives in the study on real data (docs/finqa_study.md), for seeds of runs/finqa_smollm2.sh:
# a better policy; a better start for PPO and GRPO; and, that of the first seed given, a teacher of the policies of the
# first epoch, by distillation and by PPO on the combined reward.
#
#     METHODS="ppo grpo" ./setup.sh runs/finqa_smollm2.sh DATA 2 3
#     ./setup.sh runs/finqa_smollm2_second_epoch.sh DATA 2 3
#
# An interrupted run goes on where it was: run the same command again.
set -euo pipefail
cd "$(dirname "$0")/.."
data=${1:?"usage: $0 DATA [SEED …]"}
shift
seeds=("${@:-0}")
first=outputs/finqa_smollm2_seed_ second=outputs/finqa_smollm2_second_seed_ sft=03_sft/ckpt_sft/final

for seed in "${seeds[@]}"; do
    RUN=finqa_smollm2_second START=$first$seed/$sft METHODS=${METHODS:-ppo grpo} runs/finqa_smollm2.sh "$data" "$seed"
done

model=(--config configs/models/smollm2-135m.yaml --model.generation.max_new_tokens 80)
taught=("${model[@]}" --model.model.teacher_name_or_path "$second${seeds[0]}/$sft")
for seed in "${seeds[@]}"; do
    own=(--run_id "finqa_smollm2_seed_$seed" --seed "$seed")
    evaluate=(10_evaluate.py "${own[@]}" --dataset_config configs/datasets/finqa-gold.yaml --dataset.data_root "$data"
        --teacher_metrics false --reference_metrics false)
    python "${evaluate[@]}" "${model[@]}" --policy sft_second --policy_ckpt "$second$seed/$sft"
    python 03_sft_train.py --objective distill "${own[@]}" "${taught[@]}" --num_rollouts 8 --learning_rate 1e-4 \
        --per_device_train_batch_size 32
    python "${evaluate[@]}" "${taught[@]}" --policy distill_final --policy_ckpt "$first$seed/03_distill/ckpt_distill/final"
    python 05_train_ppo.py --reward combined "${own[@]}" "${taught[@]}" --num_rollouts 8 --learning_rate 1e-4 \
        --reward_spec configs/rewards/combined.yaml --rollout_batch_size 64
    python "${evaluate[@]}" "${taught[@]}" --policy ppo_final --policy_ckpt "$first$seed/05_ppo/ckpt_ppo/final"
done
