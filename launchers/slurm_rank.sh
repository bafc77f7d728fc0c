#!/usr/bin/env bash
# One task of a SLURM step becomes one rank: slurm_rank.sh COMMAND [ARG...] says in torch's words who this task is and
# turns into COMMAND. srun.sh starts it; SLURM_NTASKS and the like are the step's own by then.
set -euo pipefail

# tasks_on NODE "2(x3),1": how many tasks the step has on its NODE-th node, which SLURM tells in this form only
tasks_on() {
    local node=$1 part tasks nodes
    for part in ${2//,/ }; do
        tasks=${part%%(*}
        nodes=1
        [[ $part != *x* ]] || nodes=${part//*x/} nodes=${nodes%)}
        ((node >= nodes)) || break
        node=$((node - nodes))
    done
    echo "$tasks"
}

export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID GROUP_RANK=$SLURM_NODEID WORLD_SIZE=$SLURM_NTASKS
LOCAL_WORLD_SIZE=$(tasks_on "$SLURM_NODEID" "$SLURM_STEP_TASKS_PER_NODE")
read -r first_node < <(scontrol show hostnames "$SLURM_STEP_NODELIST")
export LOCAL_WORLD_SIZE MASTER_ADDR=${MASTER_ADDR:-$first_node}
export MASTER_PORT=${MASTER_PORT:-$((10000 + SLURM_JOB_ID % 20000))}
# Else torch would start a thread per core in each of a node's ranks.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
exec "$@"
