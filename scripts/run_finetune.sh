#!/usr/bin/env bash
# usage: bash scripts/run_finetune.sh PHOTOS WEIGHTS [OUTPUT] [--option value ...]; PHOTOS: one folder of photos for each
# class; WEIGHTS: a checkpoint, also of timm, TensorFlow or MindCV; the options are those of train.py
MORE_REQUIREMENTS=requirements-report.txt
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
exec "$PYTHON" -m src.finetune "$@"
