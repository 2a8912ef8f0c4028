#!/usr/bin/env bash
# How much the methods depend on their learning rates: each trained at a third of its own, at its own and at three
# times it, under one budget; then a table and a figure over the three.
#
#     ./setup.sh runs/sensitivity.sh                       # METHODS="ppo grpo rloo dpo", SEEDS="0 1 2"
#     ./setup.sh runs/sensitivity.sh --dry_run             # every step; runs nothing
#     METHODS="gspo cispo" SEEDS=0 ./setup.sh runs/sensitivity.sh --reward task
#
# Further words are options of 12_driver.py; OUTPUTS is where runs are written ("outputs").
set -euo pipefail
cd "$(dirname "$0")/.."
METHODS=${METHODS:-ppo grpo rloo dpo}
SEEDS=${SEEDS:-0 1 2}
OUTPUTS=${OUTPUTS:-outputs}

for factor in third once thrice; do
    # shellcheck disable=SC2046,SC2086
    python 12_driver.py --method $METHODS --seeds $SEEDS --run_id "sensitivity_$factor" --outputs_root "$OUTPUTS" \
        $(python -m runs.sensitivity rates "$factor" $METHODS) "$@"
done
case " $* " in
    *" --dry_run "*) ;;
    *) python -m runs.sensitivity table "$OUTPUTS/sensitivity" ;;
esac
