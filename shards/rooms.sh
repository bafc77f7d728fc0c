#!/usr/bin/env bash
# Rendered rooms in either archive's layout, and their shards: shards/rooms.sh [nyud|pascal] [TRAIN] [VAL] [OUT]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../launchers/common.sh"
cd "$ROOT"
layout=${1:-nyud} train=${2:-400} val=${3:-100}
out=${4:-data/rooms-$layout}
"$PYTHON" -m fgmoe_dist.cli rooms --layout "$layout" --out "$out/archive" --train "$train" --val "$val" --seed "${SEED:-0}"
exec shards/build.sh "$layout" "$out/archive" "$out"
