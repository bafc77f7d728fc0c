#!/usr/bin/env bash
# A SLURM of two virtual nodes on this one machine, to run the real batch scripts on.
#
#   .ci/slurm_cluster.sh start            install what is missing (Debian, root), start, wait until both nodes are idle
#   eval "$(.ci/slurm_cluster.sh env)"    point sbatch, srun, scontrol ... of this shell at it
#   .ci/slurm_cluster.sh status           nodes and jobs; fails if the cluster is not up
#   .ci/slurm_cluster.sh stop             cancel every job, end the daemons, remove their files
#
# Everything lives in one folder (FGMOE_SLURM_DIR), with its own munge key and socket: a SLURM that the machine may
# already belong to is neither used nor touched. The one thing outside is a line in /etc/hosts, because ranks look the
# first node's name up; `stop` takes it out again. Each node claims CPUs and two GPUs that do not exist, so that
# requests can be shaped as on a real cluster; the ranks see no device and train on the CPU.
set -euo pipefail

DIR=${FGMOE_SLURM_DIR:-/run/fgmoe-slurm}
NODES=(fgmoe-n1 fgmoe-n2)
CPUS=4
CONTROLLER_PORT=${FGMOE_SLURM_PORT:-17817} # the nodes take the two ports after it
HOSTS_MARK='# fgmoe virtual slurm nodes'
export SLURM_CONF=$DIR/slurm.conf

fail() {
    echo "slurm_cluster: $*" >&2
    exit 1
}

install_packages() {
    command -v slurmctld slurmd sbatch munged >/dev/null && return
    [[ $(id -u) == 0 ]] || fail "slurm-wlm and munge are missing, and only root can: apt-get install slurm-wlm munge"
    command -v apt-get >/dev/null || fail "slurm-wlm and munge are missing, and there is no apt-get to get them with"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends slurm-wlm munge </dev/null >/dev/null
}

write_configuration() {
    local user host node port=$CONTROLLER_PORT
    user=$(id -un)
    host=$(hostname -s)
    mkdir -p "$DIR"/{munge,state,log}
    chmod 0755 "$DIR" && chmod 0700 "$DIR/munge"
    (umask 077 && head -c 1024 /dev/urandom >"$DIR/munge/key")
    cat >"$DIR/slurm.conf" <<CONF
ClusterName=fgmoe
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$CONTROLLER_PORT
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
# A requeued job waits until its old credential has run out: two minutes unless said otherwise.
AuthInfo=socket=$DIR/munge.socket,cred_expire=5
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/%n
SlurmctldPidFile=$DIR/slurmctld.pid
SlurmdPidFile=$DIR/%n.pid
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
SchedulerParameters=sched_interval=2,batch_sched_delay=0
GresTypes=gpu
CONF
    for node in "${NODES[@]}"; do
        port=$((port + 1))
        echo "NodeName=$node NodeHostname=$host NodeAddr=127.0.0.1 Port=$port CPUs=$CPUS Gres=gpu:2 State=UNKNOWN"
    done >>"$DIR/slurm.conf"
    echo "PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=30 State=UP" >>"$DIR/slurm.conf"
    touch "$DIR"/gpu{0,1} # slurmd believes in a device whose file it sees
    echo "Name=gpu File=$DIR/gpu[0-1]" >"$DIR/gres.conf"
}

# /etc/hosts is often a mount of its own (containers), which `sed -i` could not replace: write it in place.
set_hosts() {
    local kept
    kept=$(grep -vF "$HOSTS_MARK" /etc/hosts || true)
    { echo "$kept" && [[ $1 == with ]] && echo "127.0.0.1 ${NODES[*]} $HOSTS_MARK"; } >"$DIR/hosts" || true
    cat "$DIR/hosts" >/etc/hosts
}

start_daemons() {
    munged --key-file="$DIR/munge/key" --socket="$DIR/munge.socket" --pid-file="$DIR/munged.pid" \
        --log-file="$DIR/log/munged.log" --seed-file="$DIR/munge/seed" --num-threads=2
    slurmctld -c
    local node
    for node in "${NODES[@]}"; do slurmd -N "$node"; done
}

idle_nodes() { sinfo --noheader --Node --format='%N %t' 2>/dev/null | awk '$2 == "idle"' | sort -u | wc -l; }

wait_until_idle() {
    local deadline=$((SECONDS + 60))
    until [[ $(idle_nodes) == "${#NODES[@]}" ]]; do
        if ((SECONDS > deadline)); then
            tail -n 20 "$DIR"/log/*.log >&2
            fail "the nodes did not become idle within a minute; the logs are above and in $DIR/log"
        fi
        sleep 0.5
    done
}

# running PID_FILE. A dead daemon that a container's first process never reaps still has a number: not running.
running() { [[ -f $1 ]] && grep -q '^State:[[:space:]]*[^ZX[:space:]]' "/proc/$(<"$1")/status" 2>/dev/null; }

start() {
    if running "$DIR/slurmctld.pid"; then
        echo "slurm_cluster: already up"
    else
        install_packages
        stop # what a killed machine or job may have left
        write_configuration
        set_hosts with
        start_daemons
    fi
    wait_until_idle
    status
}

status() {
    running "$DIR/slurmctld.pid" || fail "not up"
    sinfo
    squeue
}

stop() {
    [[ -d $DIR ]] || return 0
    local pid_file deadline=$((SECONDS + 20))
    if running "$DIR/slurmctld.pid"; then
        squeue --noheader --format=%A | xargs --no-run-if-empty scancel || true
        while [[ -n $(squeue --noheader) ]] && ((SECONDS < deadline)); do sleep 0.5; done
    fi
    for pid_file in "$DIR"/{fgmoe-n1,fgmoe-n2,slurmctld,munged}.pid; do
        running "$pid_file" || continue
        kill "$(<"$pid_file")" 2>/dev/null || true # it may just have ended by itself
        while running "$pid_file" && ((SECONDS < deadline)); do sleep 0.1; done
    done
    set_hosts without
    rm -rf "$DIR"
}

case "${1:-}" in
start | status | stop) "$1" ;;
env) echo "export SLURM_CONF=$SLURM_CONF" ;;
*) fail "say start, stop, status or env" ;;
esac
