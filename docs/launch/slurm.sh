# Sourced by the batch scripts beside this file. Starts one Python process per GPU, and puts the job back into the
# queue where it was stopped by a signal.
#
# srun starts the processes itself, with nothing in between: the signal before the time limit reaches them, and their
# exit code comes back (accelerate launch would die of the signal, and turns every exit code into 1).

if [ $# -eq 0 ]; then
    echo "usage: sbatch docs/launch/FILE.sbatch recipes/NAME.py [ARGUMENTS …]" >&2
    exit 2
fi
cd "$SLURM_SUBMIT_DIR" || exit 2

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}" # srun does not take it over from sbatch

# all processes stop at the same step and exit with 5, but not in the same millisecond: --kill-on-bad-exit=1 would kill
# the slower ones and return 137 for 5; and when all is measured, the first process still writes the report after the
# others have ended: no --wait. What another process's crash leaves behind ends by itself, at its next word with it
code=0
# shellcheck disable=SC2016 # the variables are those of each task
srun --kill-on-bad-exit=0 --wait=0 \
    bash -c 'export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS; exec "$@"' task \
    "${PYTHON:-.venv/bin/python}" "$@" || code=$?

if [ "$code" -eq 5 ]; then # stopped by a signal, and saved: the same command goes on from there
    job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
    scontrol requeue "${job:-$SLURM_JOB_ID}" && code=0
fi
exit "$code"
