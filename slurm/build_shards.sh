#!/usr/bin/env bash
#SBATCH --job-name=build_shards
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
#
# Build the training and validation shards of an archive on one node, where the configurations look for them:
#   sbatch slurm/build_shards.sh nyud /archives/NYUDv2 [OUT] [more options of `fgmoe shards build`]
#   sbatch slurm/build_shards.sh pascal /archives/PASCALContext
# OUT is the folder of the two sets, by default data/DATASET.
set -euo pipefail

# sbatch runs a copy of this file: the scheduler says where the original lies, once for each task of an array.
ROOT=$(scontrol show job "${SLURM_JOB_ID:?start this with sbatch}" |
    sed -n '0,/Command=/s|^ *Command=\(.*\)/slurm/[^/]*\.sh.*|\1|p')
cd "$ROOT"
source launchers/common.sh

(($# >= 2)) || die "name the data set and its folder: sbatch slurm/build_shards.sh nyud|pascal ROOT [OUT]"
dataset=$1 archive=$2 out=data/$1
shift 2
if [[ ${1:--} != -* ]]; then
    out=$1
    shift
fi
for split in train val; do
    "$PYTHON" -m fgmoe_dist.cli shards build --dataset "$dataset" --root "$archive" --split "$split" \
        --out "$out/$split" --workers "${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}" "$@"
done
