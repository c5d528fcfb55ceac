#!/usr/bin/env bash
#SBATCH --job-name=inceptionv4 --nodes=2 --ntasks-per-node=1 --exclusive --requeue --open-mode=append
#SBATCH --signal=TERM@300
# Two servers under Slurm: sbatch deploy/slurm.sh RANK_TABLE [--option value ...], from the project's directory, which all
# servers share. Five minutes before its time is over the training saves, and the job is queued again.
# A launcher that has ended must not take the others with it, which may still be saving: --kill-on-bad-exit=0.
srun --kill-on-bad-exit=0 bash scripts/run_distribute_train.sh "$@" --resume auto --max_restarts 10 --grace 240
status=$?
if [ $status -eq 143 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit $status
