#!/usr/bin/env bash
# FinQA with Llama-3.2-1B: SFT on the gold programs, then PPO and GRPO from it on executed answers, over three seeds
# (docs/recipes.md). Needs a GPU with 24 GB, and access to the gated model (docs/tokens.md).
#
#     ./download.sh finqa
#     ./setup.sh runs/finqa_llama.sh                                         # everything, on one GPU
#     MODEL=configs/models/llama-3.2-1b-ultrafast.yaml SEEDS=0 ROLLOUTS=20 ./setup.sh runs/finqa_llama.sh
#
# MODEL: a model tier (YAML). ACCELERATE: settings for several processes (YAML). PROCESSES, RUN_ID, SEEDS, ROLLOUTS.
set -euo pipefail
cd "$(dirname "$0")/.."

rollouts=${ROLLOUTS:-200}
launch=()
if [ "${PROCESSES:-1}" -gt 1 ]; then
    launch=(--accelerate_config "${ACCELERATE:-configs/accelerate/ddp.yaml}" --num_processes "$PROCESSES")
fi

# A base model has to learn the form first.
sft=(--sft.learning_rate 2e-4 --sft.num_train_epochs 3 --sft.warmup_steps 50
    --sft.per_device_train_batch_size 4 --sft.gradient_accumulation_steps 8)

# Rollouts of 32 prompts x 8 completions, two passes in four updates each, micro-batches of 8: one shared report each.
ppo=(--ppo.num_rollouts "$rollouts" --ppo.rollout_batch_size 256 --ppo.num_generations 8
    --ppo.num_ppo_epochs 2 --ppo.num_mini_batches 4 --ppo.gradient_accumulation_steps 8
    --ppo.learning_rate 2e-5 --ppo.gamma 1 --ppo.lam 1 --ppo.kl_coef 0.005)
grpo=(--grpo.num_rollouts "$rollouts" --grpo.per_device_train_batch_size 8 --grpo.steps_per_generation 32
    --grpo.num_generations 8 --grpo.num_iterations 2 --grpo.gradient_accumulation_steps 8
    --grpo.learning_rate 2e-5 --grpo.beta 0.005)

# Executed answers, programs and form alone: no teacher is loaded anywhere.
no_teacher=(--reward task --candidates.reward task --candidates.max_items 128 --evaluate.teacher_metrics false)

# shellcheck disable=SC2086
python 12_driver.py --method ppo grpo --seeds ${SEEDS:-0 1 2} --run_id "${RUN_ID:-finqa_llama}" --jobs 1 \
    --config "${MODEL:-configs/models/llama-3.2-1b.yaml}" --dataset_config configs/datasets/finqa.yaml \
    --model.max_prompt_length 2048 --model.generation.max_new_tokens 128 --model.generation.temperature 1.0 \
    ${launch[@]+"${launch[@]}"} "${sft[@]}" "${ppo[@]}" "${grpo[@]}" "${no_teacher[@]}" "$@"
