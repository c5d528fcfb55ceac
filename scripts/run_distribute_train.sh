#!/usr/bin/env bash
# usage: bash scripts/run_distribute_train.sh RANK_TABLE [--option value ...]; one process per device. RANK_TABLE: a number of
# devices of this server; or the file for several servers, and then this command on each. Launcher options: --max_restarts N,
# --stall_timeout SECONDS, --bind_core, --server_id, --master_port, --grace (docs/cluster.md)
if [ $# -eq 0 ] || [[ "$1" == -* ]]; then
    sed -n '2,4s/^# //p' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
TABLE=$1
shift
exec "$PYTHON" -m src.cluster.launch "$TABLE" "$ROOT/train.py" "$@"
