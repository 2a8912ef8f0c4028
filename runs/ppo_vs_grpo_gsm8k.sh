#!/usr/bin/env bash
# PPO against GRPO on GSM8K from Qwen2.5-3B-Instruct: baseline, training, evaluation, comparison over three seeds
# (docs/recipes.md). Needs a GPU with 80 GB.
#
#     ./download.sh gsm8k
#     ./setup.sh runs/ppo_vs_grpo_gsm8k.sh                                   # everything, on one GPU
#     PROCESSES=4 ./setup.sh runs/ppo_vs_grpo_gsm8k.sh                       # on four GPUs of one machine
#     SEEDS=0 ROLLOUTS=50 ./setup.sh runs/ppo_vs_grpo_gsm8k.sh --dry_run     # options go on to 12_driver.py
#
# MODEL: a model tier (YAML). ACCELERATE: settings for several processes (YAML). PROCESSES, RUN_ID, SEEDS, ROLLOUTS.
set -euo pipefail
cd "$(dirname "$0")/.."

rollouts=${ROLLOUTS:-650}
launch=()
if [ "${PROCESSES:-1}" -gt 1 ]; then
    launch=(--accelerate_config "${ACCELERATE:-configs/accelerate/ddp.yaml}" --num_processes "$PROCESSES")
fi

# Rollouts of 64 prompts x 8 completions, two passes in eight updates each, micro-batches of 8 completions.
ppo=(--ppo.num_rollouts "$rollouts" --ppo.rollout_batch_size 512 --ppo.num_generations 8
    --ppo.num_ppo_epochs 2 --ppo.num_mini_batches 8 --ppo.gradient_accumulation_steps 8
    --ppo.learning_rate 1e-5 --ppo.value_model separate --ppo.value_learning_rate 1e-5
    --ppo.gamma 1 --ppo.lam 1 --ppo.cliprange 0.2 --ppo.cliprange_value 0.2 --ppo.kl_coef 0.001)
grpo=(--grpo.num_rollouts "$rollouts" --grpo.per_device_train_batch_size 8 --grpo.steps_per_generation 64
    --grpo.num_generations 8 --grpo.num_iterations 2 --grpo.gradient_accumulation_steps 8
    --grpo.learning_rate 1e-5 --grpo.epsilon 0.2 --grpo.beta 0.001 --grpo.scale_rewards group)

# The task reward alone: no teacher is loaded anywhere. 04 samples only what shows how the start policy answers.
no_teacher=(--reward task --candidates.reward task --candidates.max_items 128 --evaluate.teacher_metrics false)

# Both methods start from the instruction-tuned model as it is: there is no step of SFT.
# shellcheck disable=SC2086
python 12_driver.py --method ppo grpo --policy_ckpt base --seeds ${SEEDS:-0 1 2} --run_id "${RUN_ID:-ppo_vs_grpo_gsm8k}" --jobs 1 \
    --config "${MODEL:-configs/models/qwen2.5-3b.yaml}" --dataset_config configs/datasets/gsm8k.yaml \
    --model.max_prompt_length 512 --model.generation.max_new_tokens 512 --model.generation.temperature 1.0 \
    ${launch[@]+"${launch[@]}"} "${ppo[@]}" "${grpo[@]}" "${no_teacher[@]}" "$@"
