#!/usr/bin/env bash
#SBATCH --job-name=poe
#SBATCH --comment=app=adx,adx-job=poe
#SBATCH --partition=gpu
#SBATCH --time=12:00:00
#SBATCH --gpus-per-task=1
#SBATCH --nodes=4
#SBATCH --ntasks=4
#SBATCH --signal=TERM@120
#SBATCH --output=poe-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
set -euo pipefail
cd /shared/adx
export JAX_LOCAL_DEVICE_IDS=0
code=0
srun /opt/adx/bin/python -m launch.parent -- --config=configs/smollm2_poe.py --workdir=/shared/poe || code=$?
case "$code" in
  74|75)
    if (( ${SLURM_RESTART_COUNT:-0} < 10 )) && [[ "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)" == RUNNING ]]; then
      scontrol requeue "$SLURM_JOB_ID"
    fi ;;
esac
exit "$code"
