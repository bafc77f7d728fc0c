#!/usr/bin/env bash
# Both splits of one archive as shards: shards/build.sh nyud|pascal ARCHIVE OUT. An interrupted build goes on.
# A relative OUT is the repository's, where the configurations look.
set -euo pipefail
dataset=${1:?nyud or pascal} archive=$(realpath "${2:?the unpacked archive\'s own folder}") out=${3:?folder for train/ and val/}
source "$(dirname "${BASH_SOURCE[0]}")/../launchers/common.sh"
cd "$ROOT"
for split in train val; do
    "$PYTHON" -m fgmoe_dist.cli shards build --dataset "$dataset" --root "$archive" --split "$split" --out "$out/$split" \
        --workers "${WORKERS:-$(nproc)}"
    "$PYTHON" -m fgmoe_dist.cli shards verify "$out/$split"
done
