#!/usr/bin/env bash
#SBATCH --job-name=inceptionv4 --nodes=2 --ntasks-per-node=1 --exclusive --requeue --open-mode=append
#SBATCH --signal=TERM@300
# Two servers under Slurm: sbatch deploy/slurm.sh RANK_TABLE [--option value ...], from the project's directory, which all
# servers share. Five minutes before its time is over the run saves, and the job is queued again; so it is after a failure.
# A launcher that has ended must not take the others with it, which may still be saving: --kill-on-bad-exit=0.
srun --kill-on-bad-exit=0 bash scripts/run_distribute_train.sh "$@" --resume auto --grace 240
status=$?  # the highest of all servers
case $status in
0 | 2 | 3) ;;  # done, or what would come again: unusable input, a training run that has gone wrong
143) scontrol requeue "$SLURM_JOB_ID" ;;
*) if [ "${SLURM_RESTART_COUNT:-0}" -lt 20 ]; then scontrol requeue "$SLURM_JOB_ID"; fi ;;
esac
exit $status
