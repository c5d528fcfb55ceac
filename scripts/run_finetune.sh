#!/bin/sh
# usage: bash scripts/run_finetune.sh PHOTOS WEIGHTS [OUTPUT] [--option value ...]; PHOTOS: one folder of photos for each
# class; WEIGHTS: a checkpoint, also of timm, TensorFlow or MindCV; the options are those of train.py
. "$(dirname "$(readlink -f "$0")")/environment.sh" || exit
exec "$PYTHON" "$ROOT/scripts/module.py" src.workflow finetune "$@"
