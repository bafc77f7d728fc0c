#!/usr/bin/env bash
# Rendered rooms in either archive's layout, and their shards: shards/rooms.sh [nyud|pascal] [TRAIN] [VAL] [OUT]
set -euo pipefail
layout=${1:-nyud} train=${2:-400} val=${3:-100}
out=${4:-data/rooms-$layout}
fgmoe rooms --layout "$layout" --out "$out/archive" --train "$train" --val "$val" --seed "${SEED:-0}"
exec "$(dirname "$0")/build.sh" "$layout" "$out/archive" "$out"
