#!/usr/bin/env bash
#SBATCH --job-name=matrix-ssl
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#
# A pre-training that is longer than a job of Slurm may be, one process a GPU, on one node or several:
#
#     sbatch examples/slurm.sh --data photos --out runs/photos
#
# Slurm sends SIGUSR1 to every process five minutes before the limit of time, and SIGTERM before it takes the node away.
# The run saves a checkpoint and ends; the job goes back into the queue under its number, and the same command resumes.
# Where signals do not arrive, add --max-hours 3.9 to the words after the name of this file.
set -uo pipefail

hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
export MASTER_ADDR=${hosts%%$'\n'*}
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))

srun bash -c 'RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID \
    LOCAL_WORLD_SIZE=${SLURM_NTASKS_PER_NODE:-$SLURM_NTASKS} exec matrix-ssl pretrain "$@"' _ "$@"
code=$?

case $code in
75 | 138 | 143) # --max-hours, SIGUSR1, SIGTERM: a checkpoint was written
    echo "Stopped with exit code $code after $((${SLURM_RESTART_COUNT:-0} + 1)) jobs. Going back into the queue."
    scontrol requeue "$SLURM_JOB_ID"
    ;;
esac
exit $code
