#!/usr/bin/env bash
# What each task of a job runs (slurm/job.sbatch): the command, in the project's environment.
#
# `%a` stands for the number of an array's task. Under `accelerate launch` each of several tasks is what Accelerate
# calls a machine; they meet at the first node, at a port that belongs to the job.
set -euo pipefail

tasks=${SLURM_NTASKS:-1}
launched=
[ "$1" != accelerate ] || launched=yes
meeting=()
if [ -n "$launched" ] && [ "$tasks" -gt 1 ]; then
  meeting=(--num_machines "$tasks" --machine_rank "$SLURM_PROCID" --rdzv_backend static
    --main_process_ip "${SLURM_LAUNCH_NODE_IPADDR:?}" --main_process_port "$((20000 + SLURM_JOB_ID % 20000))")
fi

words=()
processes=1
before=
for word in "$@"; do
  # Before the script, after what the command says itself: the last one counts.
  case $word in *.py) [ "$launched" != yes ] || { words+=("${meeting[@]}") && launched=done; } ;; esac
  if [ "$launched" = yes ] && [ "$before" = --num_processes ]; then processes=$word; fi
  if [ "$word" = %a ]; then word=$SLURM_ARRAY_TASK_ID; fi
  words+=("$word")
  before=$word
done

here=$((processes / tasks > 0 ? processes / tasks : 1)) # processes of this task
threads=$((${SLURM_CPUS_PER_TASK:-1} / here))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}

if [ -n "${BELLMAN_CONTAINER:-}" ]; then
  gpus=()
  [ -z "${SLURM_JOB_GPUS:-}${SLURM_STEP_GPUS:-}" ] || gpus=(--nv)
  # shellcheck disable=SC2086 - several options
  exec apptainer exec "${gpus[@]}" --bind "$BELLMAN_ROOT" --pwd "$PWD" ${BELLMAN_CONTAINER_OPTIONS:-} \
    "$BELLMAN_CONTAINER" "${words[@]}"
fi
if [ ! -f "$BELLMAN_ROOT/.venv/.setup-complete" ]; then
  echo "error: $BELLMAN_ROOT/.venv is not set up: run ./setup.sh there first, on a node with network access" >&2
  exit 2
fi
export VIRTUAL_ENV=$BELLMAN_ROOT/.venv PATH=$BELLMAN_ROOT/.venv/bin:$PATH
exec "${words[@]}"
