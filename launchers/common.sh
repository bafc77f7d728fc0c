# shellcheck shell=bash
# Sourced by every launcher: where the repository and its Python are, and what the trainer is called with.
#
# Sets      ROOT, the repository, and PYTHON
# Respects  VENV (default: the repository's .venv if there is one, else the python3 on PATH)

die() {
    echo "${0##*/}: $*" >&2
    exit 2
}

# train_arguments ARG...: fills TRAIN with the trainer and its arguments. What reads key=value becomes `--set
# key=value`; everything else is the trainer's own and passes unchanged.
train_arguments() {
    TRAIN=("$ROOT/fgmoe_dist/train.py")
    local argument previous=
    for argument in "$@"; do
        # After an option the word is its value, even with a `=` in it (--set a=b, --config runs/lr=1/c.yaml).
        if [[ $argument =~ ^[A-Za-z_][A-Za-z0-9_.]*= && ! $previous =~ ^--(set|config|resume|plugin)$ ]]; then
            TRAIN+=(--set)
        fi
        TRAIN+=("$argument")
        previous=$argument
    done
}

# check_configuration RANKS: a mistake in the configuration, or one that does not fit so many ranks, ends here, in one
# line and with status 2, before a launcher buries it.
check_configuration() {
    "$PYTHON" "${TRAIN[@]}" --check-ranks "$1" || exit
}

# GPUs that this process may use; 0 where there is no driver
count_gpus() {
    if [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
        tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c '^[0-9A-Za-z]' || true
    else
        nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU' || true
    fi
}

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [[ -n ${VENV:-} ]]; then
    PYTHON=$VENV/bin/python
    [[ -x $PYTHON ]] || die "VENV=$VENV has no bin/python: name a virtual environment, or unset VENV"
elif [[ -x $ROOT/.venv/bin/python ]]; then
    PYTHON=$ROOT/.venv/bin/python
else
    PYTHON=$(command -v python3) || die "no python3 on PATH and no $ROOT/.venv: run 'make' there, or set VENV"
fi
export PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH} # this checkout, whatever is installed

# A stray USR1 (scancel -s USR1 without --batch) would kill ranks and leave orphans of torchrun: a run is asked to stop
# by the file `stop` in its folder, never by a signal. Ignoring is inherited by everything started from here.
trap '' USR1
