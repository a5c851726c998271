sbatch <<'END_OF_INPUT'
#!/usr/bin/env bash
#SBATCH --job-name=poe
#SBATCH --comment=app=adx,adx-job=poe
#SBATCH --partition=gpu
#SBATCH --time=12:00:00
#SBATCH --gpus-per-task=1
#SBATCH --ntasks=1
#SBATCH --array=0-7
#SBATCH --signal=TERM@120
#SBATCH --output=poe-%A_%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
set -euo pipefail
cd /shared/adx
code=0
srun /opt/adx/bin/python -m launch.run --config=configs/smollm2_poe.py --workdir=/shared/poe --shard="$SLURM_ARRAY_TASK_ID" --num_shards=8 || code=$?
case "$code" in
  74|75)
    if (( ${SLURM_RESTART_COUNT:-0} < 10 )) && [[ "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)" == RUNNING ]]; then
      scontrol requeue "$SLURM_JOB_ID"
    fi ;;
esac
exit "$code"
END_OF_INPUT
squeue --me '--format=%i %j %T %M %R'
scancel --me --name=poe
