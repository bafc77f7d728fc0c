#!/usr/bin/env bash
# Both splits of one archive as shards: shards/build.sh nyud|pascal ARCHIVE OUT. An interrupted build goes on.
set -euo pipefail
dataset=${1:?nyud or pascal} archive=${2:?the unpacked archive\'s own folder} out=${3:?folder for train/ and val/}
for split in train val; do
    fgmoe shards build --dataset "$dataset" --root "$archive" --split "$split" --out "$out/$split" \
        --workers "${WORKERS:-$(nproc)}"
    fgmoe shards verify "$out/$split"
done
