#!/usr/bin/env bash
# A Slurm of one node on this machine, without systemd and cgroups: cluster.sh start|stop FOLDER (as root; Debian: slurm-wlm, munge).
# FOLDER takes configuration, state, logs and process ids; `export SLURM_CONF=FOLDER/slurm.conf` lets sbatch find it.
set -euo pipefail

command=${1:?start or stop}
folder=$(readlink -m "${2:?a folder}")
node=$(hostname -s)
cpus=$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc)

stop() {
    for name in slurmd slurmctld munged; do
        if [ -s "$folder/$name.pid" ]; then
            pid=$(cat "$folder/$name.pid")
            kill "$pid" 2>/dev/null || true
            for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
            kill -9 "$pid" 2>/dev/null || true
            rm -f "$folder/$name.pid"
        fi
    done
}

start() {
    mkdir -p "$folder"/{state,spool,munge}
    chmod 700 "$folder/munge"
    dd if=/dev/urandom of="$folder/munge/key" bs=128 count=1 status=none
    chmod 600 "$folder/munge/key"
    chmod 755 "$folder"
    # --force: the folder may lie in /tmp, where others can write.
    munged --force --key-file="$folder/munge/key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
        --log-file="$folder/munge/munged.log" --seed-file="$folder/munge/seed" 2>>"$folder/munged.err"
    cat >"$folder/slurm.conf" <<CONF
ClusterName=smat-test
SlurmctldHost=$node(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
ReturnToService=2
JobRequeue=1
KillWait=15
MinJobAge=600
NodeName=$node NodeAddr=127.0.0.1 CPUs=$cpus State=UNKNOWN
PartitionName=main Nodes=$node Default=YES MaxTime=INFINITE State=UP
CONF
    export SLURM_CONF="$folder/slurm.conf"
    slurmctld -f "$SLURM_CONF"
    slurmd -f "$SLURM_CONF"
    for _ in $(seq 100); do
        if [ "$(sinfo -h -o %T 2>/dev/null)" = idle ] && timeout 10 srun --quiet -n "$cpus" true 2>/dev/null; then
            echo "$SLURM_CONF"
            return
        fi
        sleep 0.2
    done
    echo "the node did not come up:" >&2
    tail -n 5 "$folder/slurmctld.log" "$folder/slurmd.log" >&2
    stop
    exit 1
}

case $command in
    start) start ;;
    stop) stop ;;
    *)
        echo "cluster.sh start|stop FOLDER" >&2
        exit 2
        ;;
esac
