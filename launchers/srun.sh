#!/usr/bin/env bash
# Train as one SLURM job step, a rank per task:  launchers/srun.sh --config configs/nyud_vitb.yaml [key=value ...]
#
# Inside an allocation (sbatch, salloc) the tasks are the --ntasks-per-node or --ntasks that it was asked for with, else
# one per GPU, else one per node; they share the node's CPUs evenly. Outside of one, srun makes its own allocation.
# SRUN_ARGS                 more of srun's options, e.g. "--nodes=2 --ntasks-per-node=4 --gpus-per-node=4"
# MASTER_ADDR, MASTER_PORT  default: the step's first node; a port below the ephemeral ones, from the job's id
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
train_arguments "$@"

# The smallest number of CPUs that the allocation has on one of its nodes: "8(x3),4" -> 4
fewest_cpus() {
    sed 's/(x[0-9]*)//g; s/,/\n/g' <<<"$SLURM_JOB_CPUS_PER_NODE" | sort -n | head -n 1
}

# Fills STEP with the shape of the step inside the allocation.
shape_step() {
    local a_node=${SLURM_NTASKS_PER_NODE:-} cpus=${SLURM_CPUS_PER_TASK:-}
    if [[ -z $a_node && -n ${SLURM_NTASKS:-} ]]; then
        a_node=$(((SLURM_NTASKS + SLURM_NNODES - 1) / SLURM_NNODES))
    fi
    a_node=${a_node:-${SLURM_GPUS_ON_NODE:-1}}
    check_configuration "${SLURM_NTASKS:-$((a_node * SLURM_NNODES))}"
    STEP+=(--nodes="$SLURM_NNODES" --ntasks="${SLURM_NTASKS:-$((a_node * SLURM_NNODES))}" --ntasks-per-node="$a_node")
    if [[ -z $cpus ]]; then
        cpus=$(($(fewest_cpus) / a_node))
        # An allocation asked for by GPUs alone may have one CPU per node, whatever the number of GPUs.
        if ((cpus == 0)) && [[ -z ${SLURM_NTASKS:-} ]]; then
            STEP+=(--overcommit)
            echo "srun.sh: $a_node ranks share fewer CPUs of a node: ask for --cpus-per-gpu" >&2
        fi
        cpus=$((cpus > 0 ? cpus : 1))
    fi
    STEP+=(--cpus-per-task="$cpus")
    unset SLURM_CPUS_PER_GPU # srun would take it from here, and refuses it beside --cpus-per-task
}

# gpu-bind none: a rank sees all its node's GPUs and takes that of its LOCAL_RANK, as under the other launchers.
STEP=(--kill-on-bad-exit=1 --gpu-bind=none --export=ALL --label)
[[ -z ${SLURM_JOB_ID:-} ]] || shape_step
read -ra more <<<"${SRUN_ARGS:-}"
exec srun "${STEP[@]}" "${more[@]}" "$ROOT/launchers/slurm_rank.sh" "$PYTHON" -u "${TRAIN[@]}"
