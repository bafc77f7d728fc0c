#!/usr/bin/env bash
# Train under DeepSpeed's launcher:  [NPROC=2] launchers/deepspeed.sh --config configs/demo.yaml [key=value ...]
#
# NPROC           processes on this machine (default: one per GPU, else one)
# MASTER_PORT     where the ranks meet (default: a free port; DeepSpeed's own is the same for every run of a machine)
# DEEPSPEED_ARGS  more of the launcher's own options, e.g. "--hostfile hosts" for several machines over ssh
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
train_arguments "$@"

read -ra options <<<"${DEEPSPEED_ARGS:-}"
if [[ " ${options[*]-} " != *" --hostfile"* && " ${options[*]-} " != *" -H "* ]]; then
    gpus=$(count_gpus)
    processes=${NPROC:-$((gpus > 0 ? gpus : 1))}
    check_configuration "$processes"
    options+=(--num_gpus="$processes")
fi
free_port='import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'
options+=(--master_port="${MASTER_PORT:-$("$PYTHON" -c "$free_port")}")
# The rank comes in the environment; as an argument (--local_rank) it would be one the trainer has to ignore.
exec "$PYTHON" -m deepspeed.launcher.runner --no_local_rank "${options[@]}" "${TRAIN[@]}"
