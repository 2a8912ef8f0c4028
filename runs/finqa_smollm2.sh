#!/usr/bin/env bash
# The study on real data with a real model (docs/finqa_study.md): SmolLM2-135M-Instruct on FinQA with the evidence given.
# SFT, then GRPO, RLOO, PPO, DPO and rejection-sampling fine-tuning from it, on the verified task reward alone, from as
# many sampled completions each; evaluated on the 431 test items.
#
#     ./setup.sh ./download.sh model smollm2-135m
#     ./setup.sh runs/finqa_smollm2.sh DATA [SEED …]      # DATA: the folder with FinQA's train.json, dev.json, test.json
#     METHODS="grpo rft" COMPLETIONS=1024 ./setup.sh runs/finqa_smollm2.sh DATA 0
#
# An interrupted run goes on where it was: run the same command again. RUN names the runs of the seeds (RUN_seed_0),
# START what SFT starts from in place of the base model, DRIVER more options of 12_driver.py, which then is all that runs.
set -euo pipefail
cd "$(dirname "$0")/.."
data=${1:?"usage: $0 DATA [SEED …]"}
shift
methods=${METHODS:-grpo rloo ppo dpo rft}
options=(
    --prepare.tokenizer models/smollm2-135m
    --sft.num_train_epochs "${EPOCHS:-1}" --sft.learning_rate 7e-4 --sft.lr_scheduler_type linear
    --sft.per_device_train_batch_size 8 --sft.gradient_accumulation_steps 1
    --evaluate.teacher_metrics false --evaluate.reference_metrics false
)
for method in $methods; do
    case $method in
        grpo | rloo) options+=("--$method.learning_rate" 1e-4 "--$method.per_device_train_batch_size" 32) ;;
        ppo) options+=(--ppo.learning_rate 1e-4 --ppo.rollout_batch_size 64) ;;
        rft)
            # The steps are few: a warm-up would take all of them.
            options+=(--rft.learning_rate 2e-4 --rft.warmup_steps 0 --rft.num_train_epochs 1
                --rft.per_device_train_batch_size 8)
            ;;
        dpo)
            options+=(--dpo.learning_rate 5e-5 --dpo.warmup_steps 0 --dpo.num_train_epochs 1
                --preferences.min_pairs 16)
            ;;
    esac
done
run=${RUN:-finqa_smollm2}
model=(--config configs/models/smollm2-135m.yaml --model.generation.max_new_tokens 80)
[ -z "${START:-}" ] || model+=(--model.model.name_or_path "$START")
dataset=(--dataset_config configs/datasets/finqa-gold.yaml --dataset.data_root "$data")
seeds=("${@:-0}")
# shellcheck disable=SC2086
python 12_driver.py --method $methods --reward task --seeds "${seeds[@]}" --run_id "$run" "${model[@]}" \
    "${dataset[@]}" --reward_config configs/rewards/task.yaml --completions "${COMPLETIONS:-512}" \
    ${DRIVER:-} "${options[@]}"
[ -z "${DRIVER:-}" ] || exit 0
# Validation items are too few to choose a checkpoint by: the last one of each training is evaluated as well.
for seed in "${seeds[@]}"; do
    for checkpoint in "outputs/${run}_seed_$seed"/{03_rft,0[5679]_*_task}/ckpt_*/final; do
        [ -d "$checkpoint" ] || continue
        stage=$(basename "${checkpoint%/ckpt_*}")
        python 10_evaluate.py --run_id "${run}_seed_$seed" --seed "$seed" --policy "${stage#*_}_final" \
            --policy_ckpt "$checkpoint" "${model[@]}" "${dataset[@]}" --teacher_metrics false --reference_metrics false
    done
done
