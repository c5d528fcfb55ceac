#!/bin/sh
# usage: bash scripts/run_finetune.sh PHOTOS WEIGHTS [OUTPUT] [--option value ...]; PHOTOS: one folder of photos for each
# class; WEIGHTS: a checkpoint, also of timm, TensorFlow or MindCV; the options are those of train.py
MORE_REQUIREMENTS='requirements-report.txt requirements-export.txt'
. "$(dirname "$(readlink -f "$0")")/environment.sh" || exit
exec "$PYTHON" "$ROOT/scripts/module.py" src.workflow finetune "$@"
