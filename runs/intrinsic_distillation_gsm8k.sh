#!/usr/bin/env bash
# Intrinsic-reward distillation on GSM8K: Qwen2.5-7B-Instruct is paid what the logits of Qwen2.5-32B-Instruct say of
# each token, and nothing else (PPO); beside it on-policy distillation of the same teacher from as many samples
# (docs/recipes.md). Needs a GPU with 80 GB: the teacher is loaded in 4 bits.
#
#     ./download.sh gsm8k
#     ./setup.sh runs/intrinsic_distillation_gsm8k.sh                                 # everything, on one GPU
#     ./setup.sh runs/intrinsic_distillation_gsm8k.sh --model.teacher_load_in_4bit false --model.teacher_device_map cuda:1
#     FORM=logprob ./setup.sh runs/intrinsic_distillation_gsm8k.sh --run_id logprob   # options go on to 12_driver.py
#
# MODEL: a model tier (YAML). TEACHER: a hub name or folder. FORM: of the reward. ACCELERATE: settings for several
# processes (YAML). PROCESSES, RUN_ID, SEEDS, ROLLOUTS.
set -euo pipefail
cd "$(dirname "$0")/.."

rollouts=${ROLLOUTS:-200}
launch=()
if [ "${PROCESSES:-1}" -gt 1 ]; then
    launch=(--accelerate_config "${ACCELERATE:-configs/accelerate/ddp.yaml}" --num_processes "$PROCESSES")
fi

teacher=(--teacher --model.teacher_name_or_path "${TEACHER:-Qwen/Qwen2.5-32B-Instruct}"
    --model.teacher_load_in_4bit true)

# Equation 12 of arXiv 2506.23235 at alpha 1, weight 1, a KL penalty of 0.01 to the start policy.
reward=(--reward intrinsic --reward.weights.intrinsic 1 --reward.intrinsic.form "${FORM:-bellman}"
    --reward.intrinsic.alpha 1)

# Rollouts of 32 prompts x 4 completions, two passes in two updates each, micro-batches of 4 completions.
ppo=(--ppo.num_rollouts "$rollouts" --ppo.rollout_batch_size 128 --ppo.num_generations 4
    --ppo.num_ppo_epochs 2 --ppo.num_mini_batches 2 --ppo.gradient_accumulation_steps 16
    --ppo.learning_rate 1e-5 --ppo.gamma 1 --ppo.lam 0.95 --ppo.kl_coef 0.01)
distill=(--distill.num_rollouts "$rollouts" --distill.per_device_train_batch_size 4 --distill.num_generations 4
    --distill.steps_per_generation 32 --distill.gradient_accumulation_steps 16 --distill.num_iterations 2
    --distill.learning_rate 1e-5 --distill.divergence reverse_kl)

# Both methods start from the instruction-tuned model as it is: there is no step of SFT.
# shellcheck disable=SC2086
python 12_driver.py --method distill ppo --policy_ckpt base --seeds ${SEEDS:-0 1 2} --jobs 1 \
    --run_id "${RUN_ID:-intrinsic_distillation_gsm8k}" \
    --config "${MODEL:-configs/models/qwen2.5-7b.yaml}" --dataset_config configs/datasets/gsm8k.yaml \
    --model.max_prompt_length 512 --model.generation.max_new_tokens 512 --model.generation.temperature 1.0 \
    --candidates.max_items 128 \
    ${launch[@]+"${launch[@]}"} "${teacher[@]}" "${reward[@]}" "${ppo[@]}" "${distill[@]}" "$@"
