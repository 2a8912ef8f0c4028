#!/usr/bin/env bash
# Rows with a teacher for the study on real data (docs/finqa_study.md), of one seed of runs/finqa_smollm2.sh: its SFT policy
# is trained for a second epoch, and then teaches the one of the first epoch, by distillation and by PPO on the combined
# reward.
#
#     METHODS=ppo COMPLETIONS=512 ./setup.sh runs/finqa_smollm2.sh DATA SEED
#     ./setup.sh runs/finqa_smollm2_teacher.sh DATA SEED
#
# An interrupted run goes on where it was: run the same command again.
set -euo pipefail
cd "$(dirname "$0")/.."
data=${1:?"usage: $0 DATA [SEED]"}
seed=${2:-0}
student=finqa_smollm2_seed_$seed
taught=(--run_id "$student" --seed "$seed")
own=(--run_id "finqa_smollm2_teacher_$seed" --seed "$seed")
start=outputs/$student/03_sft/ckpt_sft/final
teacher=outputs/finqa_smollm2_teacher_$seed
model=(--config configs/models/smollm2-135m.yaml --model.generation.max_new_tokens 80)
dataset=(--dataset_config configs/datasets/finqa-gold.yaml --dataset.data_root "$data")
with=("${model[@]}" --model.model.teacher_name_or_path "$teacher/03_sft/ckpt_sft/final")

python 00_check_data.py "${own[@]}" "${dataset[@]}"
python 01_prepare_dataset.py "${own[@]}" "${dataset[@]}" --tokenizer models/smollm2-135m
python 02_build_rewards.py "${own[@]}" --reward_config configs/rewards/combined.yaml
python 03_sft_train.py "${own[@]}" "${model[@]}" --model.model.name_or_path "$start" --num_train_epochs 1 \
    --learning_rate 7e-4 --lr_scheduler_type linear --per_device_train_batch_size 8 --gradient_accumulation_steps 1

python 03_sft_train.py --objective distill "${taught[@]}" "${with[@]}" --num_rollouts 8 --learning_rate 1e-4 \
    --per_device_train_batch_size 32
python 05_train_ppo.py --reward combined "${taught[@]}" "${with[@]}" --num_rollouts 8 --learning_rate 1e-4 \
    --reward_spec "$teacher/02_rewards/reward_spec.yaml" --rollout_batch_size 64

evaluate=(10_evaluate.py "${taught[@]}" "${with[@]}" "${dataset[@]}" --teacher_metrics false --reference_metrics false)
python "${evaluate[@]}" --policy teacher
python "${evaluate[@]}" --policy distill_final --policy_ckpt "outputs/$student/03_distill/ckpt_distill/final"
python "${evaluate[@]}" --policy ppo_final --policy_ckpt "outputs/$student/05_ppo/ckpt_ppo/final"
