#!/usr/bin/env bash
# The whole road on the built-in data: render rooms, build shards, train FGMoE with its experts split over two ranks,
# evaluate, draw. `make demo` runs it; arguments are key=value settings of the training.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
BIN=${BIN:-.venv/bin}
TRAIN=${TRAIN:-320} VAL=${VAL:-60} RANKS=${RANKS:-2}
RUN=runs/demo
for setting in "$@"; do [[ $setting != run.dir=* ]] || RUN=${setting#run.dir=}; done
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} TOKENIZERS_PARALLELISM=false

# Expert parallelism wants a GPU for each rank; with fewer, the ranks are processes on CPUs.
gpus=$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU' || true)
((gpus >= RANKS)) || export CUDA_VISIBLE_DEVICES=

step() { printf '\n\033[1m%s\033[0m\n' "$*"; }

step "1/5  rendering $TRAIN training and $VAL validation rooms into data/demo/rooms"
"$BIN/fgmoe" rooms --layout nyud --out data/demo/rooms --train "$TRAIN" --val "$VAL" --seed 1 --size 224x308

step "2/5  building WebDataset shards in data/demo/shards"
for split in train val; do
    "$BIN/fgmoe" shards build --dataset nyud --root data/demo/rooms --split $split --out data/demo/shards/$split
done

step "3/5  training on $RANKS ranks, the routed experts split between them (configs/demo.yaml)"
NPROC=$RANKS launchers/torchrun.sh --config configs/demo.yaml "$@"

step "4/5  predicting on a photograph: a motorcycle in a workshop, from scikit-image"
photograph=$("$BIN/python" -c 'import skimage; print(skimage.__path__[0] + "/data/motorcycle_left.png")')
"$BIN/fgmoe" predict --checkpoint "$RUN" --input "$photograph" --output "$RUN/predictions"

step "5/5  comparing the runs so far"
"$BIN/fgmoe" compare runs

cat <<END

Look at   $RUN/pictures/              panels of validation images, prediction above truth
          $RUN/predictions/panels/    the same for a photograph outside the data set
          $RUN/metrics.jsonl, eval/   every logged step, every score
Curves    make ui, MLflow on these runs: scores, curves, pictures, and which settings differ
Next      $BIN/fgmoe predict --checkpoint $RUN --input YOUR_PHOTO.jpg --output predictions
          make demo SETTINGS="run.dir=runs/top2 run.name=top2 experts.top_k=2"     then compare:
          $BIN/fgmoe compare runs
END
