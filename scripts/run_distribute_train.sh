#!/bin/bash
# Train with one process per device that the rank table lists for this server; run it on each server.
if [ $# -eq 0 ] || [[ "$1" == -* ]]; then
    echo "usage: bash scripts/run_distribute_train.sh RANK_TABLE [--option value ...]" \
         "(also --launcher msrun, --bind_core, --server_id ID, --master_port P, --grace SECONDS)" >&2
    exit 2
fi
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd) || exit 1
if [ -x "$ROOT/.venv/bin/python" ]; then DEFAULT="$ROOT/.venv/bin/python"; else DEFAULT=python3; fi
TABLE=$1
shift
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-$DEFAULT}" -m src.launch "$TABLE" "$ROOT/train.py" "$@"
