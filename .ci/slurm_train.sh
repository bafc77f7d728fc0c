#!/usr/bin/env bash
# The real batch script on a real SLURM of two virtual nodes: trains over two nodes and over four ranks, with the same
# losses as under torchrun and deepspeed; is asked to stop by USR1, requeued, and ends as if nothing had been; loses a
# rank to SIGKILL, fails within a minute, and goes on when submitted again.
#
# .ci/slurm_train.sh [WORK]    WORK: a folder for data, runs and logs, kept afterwards (default: a temporary one)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launchers/common.sh

work=$(realpath -m "${1:-$(mktemp -d)}")
mkdir -p "$work/logs"
export OMP_NUM_THREADS=1

finish() {
    local status=$?
    ((status == 0)) || tail -n 40 "$work"/logs/*.out >&2 || true
    .ci/slurm_cluster.sh stop
    [[ -n ${kept:-} ]] || rm -rf "$work"
    exit "$status"
}

fail() {
    echo "slurm_train: $*" >&2
    exit 1
}

say() { echo "== $(date +%T) $*"; }

# Rooms small enough that a step takes a fraction of a second; the encoder's weights are random.
build_data() {
    local split
    "$PYTHON" -m fgmoe_dist.cli rooms --layout nyud --out "$work/rooms" --train 8 --val 2 --seed 1 --size 64x80
    for split in train val; do
        "$PYTHON" -m fgmoe_dist.cli shards build --dataset nyud --root "$work/rooms" --split "$split" \
            --out "$work/shards/$split" --samples-per-shard 2
    done
}

# settings NAME STEPS: what every run here is called with
settings() {
    arguments=(
        --config configs/nyud_vitb.yaml run.dir="$work/runs/$1" run.name="$1" train.steps="$2"
        data.train="$work/shards/train" data.val="$work/shards/val" data.image_size="[64, 80]" data.workers=1
        encoder.name=vit_tiny_patch16_224 encoder.weights=none decoder.channels=32 experts.hidden=64 experts.count=2
        train.batch_size=4 train.micro_batch_size=2 train.lr=1e-3 train.log_every=1 train.checkpoint_every=5
        train.evaluate_every=0 train.loss_average=image parallel.ep_size=2
    )
}

# submit SBATCH_OPTION... : the job's number; the trainer's arguments are those of the last `settings`
submit() {
    sbatch --parsable --output="$work/logs/%x-%j.out" "$@" slurm/train_nyud.sh "${arguments[@]}"
}

two_nodes=(--nodes=2 --ntasks-per-node=1)

# logged NAME: how many steps metrics.jsonl has
logged() { { wc -l <"$work/runs/$1/metrics.jsonl"; } 2>/dev/null || echo 0; }

until_logged() {
    local deadline=$((SECONDS + 180))
    until (($(logged "$1") >= $2)); do
        ((SECONDS < deadline)) || fail "$1 has logged $(logged "$1") steps in three minutes, not $2"
        sleep 0.2
    done
}

# ended JOB SECONDS: waits for the job's end and prints its state
ended() {
    local state deadline=$((SECONDS + $2))
    [[ -n $1 ]] || fail "sbatch took no job"
    while :; do
        state=$(scontrol show job "$1" | sed -n 's/.*JobState=\([A-Z_]*\).*/\1/p')
        [[ $state =~ ^(PENDING|CONFIGURING|RUNNING|COMPLETING|REQUEUED|SUSPENDED)$ ]] || break
        ((SECONDS < deadline)) || fail "job $1 is still $state after $2 s"
        sleep 0.5
    done
    echo "$state"
}

completed() {
    local state
    state=$(ended "$1" 300)
    [[ $state == COMPLETED ]] || fail "job $1 ended as $state"
}

# check_run NAME STEPS: every step logged once, with finite losses; a checkpoint and an evaluation of the last one
check_run() {
    "$PYTHON" - "$work/runs/$1" "$2" <<'PYTHON'
import json, math, pathlib, sys

run, steps = pathlib.Path(sys.argv[1]), int(sys.argv[2])
lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
logged = [line["step"] for line in lines if "loss" in line]
assert logged == list(range(1, steps + 1)), f"{run}: logged steps {logged}"
assert all(math.isfinite(line["loss"]) for line in lines if "loss" in line), f"{run}: a loss is not finite"
latest = (run / "checkpoints/latest").read_text().strip()
assert (run / "checkpoints" / latest / "state.json").is_file(), f"{run}: no checkpoint {latest}"
assert int(latest.rsplit("-", 1)[1]) == steps, f"{run}: the latest checkpoint is {latest}"
assert (run / f"eval/{steps}.json").is_file() or list((run / "eval").glob(f"*{steps}.json")), f"{run}: no evaluation"
assert not (run / "stop").exists(), f"{run}: the stop file is still there"
PYTHON
}

# same_losses NAME NAME: step by step, to 1e-5
same_losses() {
    "$PYTHON" - "$work/runs/$1" "$work/runs/$2" <<'PYTHON'
import json, pathlib, sys

runs = [pathlib.Path(path) for path in sys.argv[1:]]
lines = [(run / "metrics.jsonl").read_text().splitlines() for run in runs]
a, b = ([json.loads(line)["loss"] for line in of_run] for of_run in lines)
worst = max(abs(x - y) / abs(x) for x, y in zip(a, b, strict=True))
print(f"   {runs[0].name} and {runs[1].name}: losses differ by at most {worst:.1e}")
assert worst < 1e-5, (a, b)
PYTHON
}

train_everywhere() {
    say "two nodes, a rank each"
    settings srun2 6
    completed "$(submit "${two_nodes[@]}")"
    check_run srun2 6
    say "two nodes of two GPUs as SLURM sees it: four ranks"
    settings srun4 6
    arguments+=(train.micro_batch_size=1)
    completed "$(submit --nodes=2 --gpus-per-node=2 --cpus-per-gpu=1)"
    check_run srun4 6
    say "torchrun and deepspeed, two ranks"
    settings torchrun2 6
    NPROC=2 launchers/torchrun.sh "${arguments[@]}" >"$work/logs/torchrun2.out" 2>&1
    settings deepspeed2 6
    NPROC=2 launchers/deepspeed.sh "${arguments[@]}" >"$work/logs/deepspeed2.out" 2>&1
    same_losses srun2 torchrun2
    same_losses srun2 deepspeed2
    same_losses srun2 srun4
}

# The other script, its five tasks, and the evaluation of people's parts and saliency.
train_pascal() {
    local split job
    say "PASCAL-Context's script, two nodes"
    "$PYTHON" -m fgmoe_dist.cli rooms --layout pascal --out "$work/people" --train 8 --val 2 --seed 1 --size 64x80
    for split in train val; do
        "$PYTHON" -m fgmoe_dist.cli shards build --dataset pascal --root "$work/people" --split "$split" \
            --out "$work/people-shards/$split" --samples-per-shard 2
    done
    settings pascal 4
    arguments+=(--config configs/pascal_vitb.yaml)
    arguments+=(data.train="$work/people-shards/train" data.val="$work/people-shards/val")
    job=$(sbatch --parsable --output="$work/logs/%x-%j.out" "${two_nodes[@]}" slurm/train_pascal.sh "${arguments[@]}")
    completed "$job"
    check_run pascal 4
}

stop_and_requeue() {
    local job
    say "USR1 after a few steps, as before the time limit: saved, requeued, finished"
    settings requeued 20
    job=$(submit "${two_nodes[@]}")
    until_logged requeued 3
    scancel --signal=USR1 --batch "$job"
    completed "$job"
    check_run requeued 20
    grep -q "back into the queue" "$work/logs/train_nyud-$job.out" || fail "job $job was not requeued"
    scontrol show job "$job" | grep -q Restarts=1 || fail "job $job was not started a second time"
    settings straight 20
    completed "$(submit "${two_nodes[@]}")"
    same_losses straight requeued
}

lose_a_rank() {
    local job victim start state
    say "SIGKILL of one rank: the job fails within a minute, and goes on when submitted again"
    settings killed 20
    job=$(submit "${two_nodes[@]}")
    until_logged killed 6
    victim=$(scontrol listpids "$job.0" fgmoe-n2 | awk '$5 == 1 { print $1; exit }')
    [[ -n $victim ]] || fail "SLURM names no process of rank 1"
    start=$SECONDS
    kill -KILL "$victim"
    state=$(ended "$job" 60)
    [[ $state == FAILED ]] || fail "job $job ended as $state, not FAILED"
    echo "   failed $((SECONDS - start)) s after the rank"
    completed "$(submit "${two_nodes[@]}")"
    check_run killed 20
    same_losses straight killed
}

kept=${1:-}
trap finish EXIT
say "cluster"
.ci/slurm_cluster.sh start
eval "$(.ci/slurm_cluster.sh env)"
say "data"
build_data
train_everywhere
train_pascal
stop_and_requeue
lose_a_rank
say "all of it holds"
