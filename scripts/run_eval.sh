#!/bin/sh
# usage: bash scripts/run_eval.sh [RANK_TABLE] [--option value ...], or [RANK_TABLE|DEVICE] DATA CKPT [--option value ...];
# default_config.yaml lists the options
. "$(dirname "$(readlink -f "$0")")/environment.sh" || exit
# A rank table is a file .json. A number is that of ranks where no DATA follow, else the device, as in the model zoo.
case "${1:--}:${2:--}" in
-*) ;;
*.json:* | *:-*)
    TABLE=$1
    shift
    exec "$PYTHON" "$ROOT/scripts/module.py" src.cluster.launch "$TABLE" "$ROOT/eval.py" "$@"
    ;;
esac
exec "$PYTHON" "$ROOT/eval.py" "$@"
