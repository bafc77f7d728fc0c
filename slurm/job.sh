# shellcheck shell=bash
# Sourced by the batch scripts here, with ROOT (the repository) set: a training job that survives its time limit.
#
# SLURM sends USR1 to the batch shell alone (`--signal=B:USR1@120`) two minutes before the time is up. The shell leaves
# the file `stop` in the run folder; the ranks see it, agree on a step, save a checkpoint and end with 0; then the job
# is put back into the queue under its own number, finds its own run folder again, and goes on from that checkpoint.
# After a node failure or a preemption SLURM requeues by itself (`--requeue`), and the run goes on from its last
# periodic checkpoint.

# given KEY ARG...: the last value that the arguments set KEY to, in any of the forms key=value, --set key=value,
# --set=...
given() {
    local key=$1 argument value=
    shift
    for argument in "$@"; do
        argument=${argument#--set=}
        [[ $argument != "$key="* ]] || value=${argument#*=}
    done
    echo "$value"
}

has_option() {
    local option=$1 argument
    shift
    for argument in "$@"; do
        [[ $argument != "$option" && $argument != "$option="* ]] || return 0
    done
    return 1
}

leave_stop_file() {
    asked_to_stop=1
    interrupted=1
    mkdir -p "$run_dir"
    touch "$run_dir/stop"
    echo "$(date +%T) USR1: asked the run to stop ($run_dir/stop)"
}

# wait_for PID: its exit status, through any number of trapped signals, each of which ends `wait` early
wait_for() {
    local status
    while :; do
        interrupted=0
        status=0
        wait "$1" || status=$?
        ((interrupted)) || return "$status"
    done
}

requeue() {
    local job=$SLURM_JOB_ID
    # One task of an array has the array's own number, which would requeue all of them.
    [[ -z ${SLURM_ARRAY_JOB_ID:-} ]] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    echo "$(date +%T) saved; back into the queue as job $job, to go on in $run_dir"
    scontrol requeue "$job" && return
    echo "the scheduler refuses to requeue; to go on, submit the same line again with run.dir=$run_dir" >&2
    exit 1
}

# train DEFAULT_CONFIG NAME ARG...: one training job; relative paths are the repository's
train() {
    local default_config=$1 name=$2 status=0
    shift 2
    cd "$ROOT" || return
    has_option --config "$@" || set -- --config "$default_config" "$@"
    run_dir=$(given run.dir "$@")
    if [[ -z $run_dir ]]; then
        run_dir=runs/$name-$SLURM_JOB_ID # the job's number outlives a requeue
        set -- "$@" "run.dir=$run_dir"
    fi
    # A later start goes on from where the one before it stopped, wherever the first began.
    ((${SLURM_RESTART_COUNT:-0} == 0)) || set -- "$@" --resume auto
    # The last signal may have come when nothing was left to stop; that file must not stop this start of the job.
    rm -f "$run_dir/stop"
    asked_to_stop=0
    trap leave_stop_file USR1

    echo "$(date +%T) job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)), on $SLURM_JOB_NODELIST: $run_dir"
    # Beside the shell, for a trap runs only once the command in the foreground has ended.
    launchers/srun.sh "$@" &
    wait_for $! || status=$?
    trap '' USR1
    ((status == 0)) || echo "$(date +%T) training ended with status $status" >&2
    if ((status == 0 && asked_to_stop)); then requeue; fi
    return "$status"
}
