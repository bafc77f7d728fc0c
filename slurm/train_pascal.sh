#!/usr/bin/env bash
#SBATCH --job-name=train_pascal
#SBATCH --nodes=1
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
#
# Train on PASCAL-Context, a process per GPU; without GPUs say --ntasks-per-node and --cpus-per-task.
# Settings: docs/slurm.md
#   sbatch --gpus-per-node=2 --cpus-per-gpu=8 slurm/train_pascal.sh [key=value ...] [--config FILE]
#   sbatch --nodes=4 --gpus-per-node=8 --cpus-per-gpu=8 slurm/train_pascal.sh train.batch_size=64 parallel.ep_size=8
set -euo pipefail

# sbatch runs a copy of this file: the scheduler says where the original lies, once for each task of an array.
ROOT=$(scontrol show job "${SLURM_JOB_ID:?start this with sbatch}" |
    sed -n '0,/Command=/s|^ *Command=\(.*\)/slurm/[^/]*\.sh.*|\1|p')
source "$ROOT/slurm/job.sh"
train configs/pascal_vitb.yaml pascal "$@"
