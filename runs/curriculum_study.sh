#!/usr/bin/env bash
# The curriculum study on the embedded default: distillation and GRPO under every curriculum, three seeds, 4,096
# completions each, level 4 held out of training.
#
#     ./setup.sh runs/curriculum_study.sh            # both methods
#     ./setup.sh runs/curriculum_study.sh distill    # one of them
set -euo pipefail
cd "$(dirname "$0")/.."

study() {
    python 12_driver.py --method "$1" --curriculum all --seeds 0 1 2 --completions 4096 --run_id "curriculum_$1" \
        --dataset.hold_out_levels 4 "${@:2}"
}

distill() { study distill --distill.validation.eval_steps 2; }

# On the task reward alone: with the teacher's part, advantages are as large within groups that are all right,
# and sec's signal says little.
grpo() { study grpo --reward task --grpo.validation.eval_steps 4; }

case "${1:-both}" in
    both) distill; grpo ;;
    distill | grpo) "$1" ;;
    *) echo "usage: $0 [distill|grpo]" >&2; exit 2 ;;
esac
