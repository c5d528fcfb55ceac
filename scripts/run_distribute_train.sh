#!/bin/sh
# usage: bash scripts/run_distribute_train.sh RANK_TABLE [DATA] [--option value ...]; one process per device. RANK_TABLE: a number
# of devices of this server; or the file for several servers, and then this command on each. Launcher options: --max_restarts N,
# --stall_timeout SECONDS, --server_id, --master_port, --grace (docs/ascend.md)
case "${1:--}" in -*)
    sed -n '2,4s/^# //p' "$0" >&2
    exit 2
    ;;
esac
. "$(dirname "$(readlink -f "$0")")/environment.sh" || exit
TABLE=$1
shift
exec "$PYTHON" "$ROOT/scripts/module.py" src.cluster.launch "$TABLE" "$ROOT/train.py" "$@"
