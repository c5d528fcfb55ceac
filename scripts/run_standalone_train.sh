#!/bin/sh
# usage: bash scripts/run_standalone_train.sh [[DEVICE] DATA] [--option value ...]; default_config.yaml lists the options
. "$(dirname "$(readlink -f "$0")")/environment.sh" || exit
exec "$PYTHON" "$ROOT/train.py" "$@"
