#!/usr/bin/env bash
# usage: bash scripts/run_eval.sh [RANK_TABLE] [--option value ...]; default_config.yaml lists the options
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
if [ $# -gt 0 ] && [[ "$1" != -* ]]; then
    TABLE=$1
    shift
    exec "$PYTHON" -m src.cluster.launch "$TABLE" "$ROOT/eval.py" "$@"
fi
exec "$PYTHON" "$ROOT/eval.py" "$@"
