#!/usr/bin/env bash
# Train under torchrun:  [NPROC=2] launchers/torchrun.sh --config configs/demo.yaml [key=value ...]
#
# NPROC     processes on this machine (default: one per GPU, else one)
# Several machines: run it on each with NNODES, NODE_RANK (0 on the first), MASTER_ADDR (the first) and MASTER_PORT set.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
train_arguments "$@"

gpus=$(count_gpus)
processes=${NPROC:-$((gpus > 0 ? gpus : 1))}
check_configuration $((processes * ${NNODES:-1}))
# torchrun would set 1, and print six lines to say so.
share=$(($(nproc) / processes))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((share > 0 ? share : 1))}
if [[ ${NNODES:-1} == 1 ]]; then
    where=(--standalone)
else
    : "${NODE_RANK:?is needed when NNODES > 1}" "${MASTER_ADDR:?is needed when NNODES > 1}"
    where=(--nnodes="$NNODES" --node-rank="$NODE_RANK")
    where+=(--master-addr="$MASTER_ADDR" --master-port="${MASTER_PORT:-29500}")
fi
exec "$PYTHON" -m torch.distributed.run "${where[@]}" --nproc-per-node="$processes" "${TRAIN[@]}"
