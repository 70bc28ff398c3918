#!/usr/bin/env bash
# A whole Slurm on this machine, without root's files and without an accounting database.
#   slurm.sh start FOLDER     then: export SLURM_CONF=FOLDER/slurm.conf
#   slurm.sh stop FOLDER
# Two partitions share one node of two processors; jobs of `urgent` preempt those of `usual`,
# which get some seconds to save and are queued again. KillWait is short, to find what needs more.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
folder=$(realpath -m "$2")

port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

start() {
    local host me root=()
    host=$(hostname -s) me=$(id -un)
    [ "$me" = root ] && root=(--force)  # munged: root may own the socket's folder
    mkdir -p "$folder"/{state,spool,munge}
    chmod 700 "$folder/munge"
    ( umask 077; head -c 128 /dev/urandom > "$folder/munge/key" )
    chmod 711 "$folder/munge"
    munged "${root[@]}" --key-file="$folder/munge/key" --socket="$folder/munge/socket" \
        --pid-file="$folder/munged.pid" --log-file="$folder/munged.log" --seed-file="$folder/munge/seed"
    cat > "$folder/slurm.conf" <<CONF
ClusterName=here
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$(port)
SlurmdPort=$(port)
SlurmUser=$me
SlurmdUser=$me
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket,cred_expire=10
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,bf_interval=1,sched_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=5
MinJobAge=60
InactiveLimit=0
ReturnToService=2
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
SlurmdParameters=config_overrides
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=usual Nodes=$host Default=YES PriorityTier=1 GraceTime=60 MaxTime=INFINITE State=UP
PartitionName=urgent Nodes=$host PriorityTier=2 PreemptMode=OFF MaxTime=INFINITE State=UP
CONF
    export SLURM_CONF="$folder/slurm.conf"
    slurmctld
    slurmd -N "$host"
    for _ in $(seq 100); do
        sinfo --noheader --format=%T 2>/dev/null | grep -q idle && return
        sleep 0.2
    done
    echo "Slurm did not start; see the logs in $folder" >&2
    tail -n 5 "$folder"/*.log >&2
    return 1
}

stop() {
    local name pid
    for name in slurmd slurmctld munged; do
        pid=$(cat "$folder/$name.pid" 2>/dev/null) || continue
        kill "$pid" 2>/dev/null || continue
        for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
        kill -9 "$pid" 2>/dev/null || true
    done
}

"$1"
