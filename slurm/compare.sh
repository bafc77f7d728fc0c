#!/usr/bin/env bash
#SBATCH --job-name=compare
#SBATCH --nodes=1
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.out
#
# Train several configurations with several seeds each, one pair an array task; here two configurations, three seeds:
#   sbatch --array=0-5 --gpus-per-node=2 slurm/compare.sh configs/a.yaml configs/b.yaml [key=value ...]
# The runs land in runs/compare-JOB/CONFIG-seedN, for `fgmoe compare` to lay side by side. All settings: docs/slurm.md
set -euo pipefail

# sbatch runs a copy of this file: the scheduler says where the original lies, once for each task of an array.
ROOT=$(scontrol show job "${SLURM_JOB_ID:?start this with sbatch}" |
    sed -n '0,/Command=/s|^ *Command=\(.*\)/slurm/[^/]*\.sh.*|\1|p')
source "$ROOT/slurm/job.sh"

configs=() settings=()
for argument in "$@"; do
    if [[ $argument == *.yaml && $argument != *=* ]]; then configs+=("$argument"); else settings+=("$argument"); fi
done
index=${SLURM_ARRAY_TASK_ID:?start this with sbatch --array=0-N}
((${#configs[@]})) || { echo "compare.sh: name the configurations to compare" >&2 && exit 2; }

config=${configs[index % ${#configs[@]}]}
seed=$((index / ${#configs[@]}))
run=$(basename "$config" .yaml)-seed$seed
train "$config" "$run" "${settings[@]}" run.name="$run" run.seed="$seed" run.dir="runs/compare-$SLURM_ARRAY_JOB_ID/$run"
