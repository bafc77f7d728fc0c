#!/usr/bin/env bash
# What only a GPU tells, as JSON in one folder: the experts' kernels beside DeepSpeed's layers and a dense MLP, MLoRE's
# three ways, this machine's profile, the error of a plan, a full-size step. `make bench-gpu`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
FGMOE=${FGMOE:-.venv/bin/fgmoe} OUT=${1:-benchmarks/results/gpu}
GPUS=$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU' || true)
((GPUS)) || { echo "error: nvidia-smi lists no GPU here" >&2 && exit 2; }
ranks=1
for more in 2 4 8; do ((more > GPUS)) || ranks+=" $more"; done
mkdir -p "$OUT"

# bench NAME ARGUMENTS...: one benchmark into its file; the others still run when it fails.
failed=()
bench() {
    echo "===== $*"
    $FGMOE bench "$@" || failed+=("$1")
}

bench moe --dtype bf16 --kernels grouped triton --tasks 4 5 --tokens 1024 4096 16128 --ranks $ranks --json "$OUT/moe.json"
bench mlore --dtype fp32 bf16 --images 4 --json "$OUT/mlore.json"
bench machine --ranks $ranks --json "$OUT/machine.json"
for precision in fp32 bf16; do
    bench step --config configs/pascal_vitl.yaml encoder.weights=none train.precision=$precision encoder.precision=$precision \
        --ranks $ranks --against "$OUT/machine.json" --json "$OUT/step_pascal_vitl_$precision.json"
done
bench plan --machine "$OUT/machine.json" --ranks $ranks --json "$OUT/plan.json"
((${#failed[@]} == 0)) || { echo "failed: ${failed[*]}" >&2 && exit 1; }
