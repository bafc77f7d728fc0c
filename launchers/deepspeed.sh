#!/usr/bin/env bash
# Train under DeepSpeed's launcher:  [NPROC=2] launchers/deepspeed.sh --config configs/demo.yaml [key=value ...]
#
# NPROC           processes on this machine (default: one a GPU, else one)
# DEEPSPEED_ARGS  more of the launcher's own options, e.g. "--hostfile hosts" for several machines over ssh
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

read -ra options <<<"${DEEPSPEED_ARGS:-}"
if [[ " ${options[*]-} " != *" --hostfile"* && " ${options[*]-} " != *" -H "* ]]; then
    gpus=$(count_gpus)
    options+=(--num_gpus="${NPROC:-$((gpus > 0 ? gpus : 1))}")
fi
# The rank comes in the environment; as an argument (--local_rank) it would be one the trainer has to ignore.
exec "$PYTHON" -m deepspeed.launcher.runner --no_local_rank "${options[@]}" "${TRAIN[@]}"
