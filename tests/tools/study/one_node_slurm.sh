#!/bin/sh
# Runs a command with a Slurm of one node, this machine, and ends that Slurm afterwards: one_node_slurm.sh COMMAND …
# Needs root and Debian's packages: apt-get install slurm-wlm munge
set -eu
folder=$(mktemp -d)
node=$(hostname -s)
stop() {
    for file in slurmd slurmctld munged; do
        if [ -s "$folder/$file.pid" ]; then kill "$(cat "$folder/$file.pid")" || true; fi
    done
    sleep 1
    rm -rf "$folder"
}
trap stop EXIT
mkdir "$folder/state" "$folder/spool" "$folder/munge"
dd if=/dev/urandom of="$folder/munge.key" bs=1024 count=1 status=none
chmod 600 "$folder/munge.key"
chmod 755 "$folder" "$folder/munge"
munged --force --key-file="$folder/munge.key" --socket="$folder/munge/socket" --pid-file="$folder/munged.pid" \
    --log-file="$folder/munged.log" --seed-file="$folder/munge.seed"
cat > "$folder/slurm.conf" <<END
ClusterName=one
SlurmctldHost=$node
SlurmUser=root
AuthInfo=socket=$folder/munge/socket
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
KillWait=5
NodeName=$node CPUs=$(nproc --all) State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END
export SLURM_CONF="$folder/slurm.conf"
slurmctld
slurmd
for _ in $(seq 30); do
    if sinfo --noheader --format=%t | grep -q idle; then break; fi
    sleep 1
done
sinfo
"$@"
