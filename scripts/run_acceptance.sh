#!/bin/sh
# usage: bash scripts/run_acceptance.sh [RANK_TABLE] [--device_target CPU] [--device_id N] [--output DIR]
# Checks what the project needs of this machine, up to the first check that fails; on NPUs 20 to 50 minutes. RANK_TABLE may be a
# number of ranks; without it two ranks start, and all else is checked on one device. Results: DIR/acceptance.json.
set -e
BEGAN=$(date +%s)
. "$(dirname "$(readlink -f "$0")")/environment.sh"
"$PYTHON" -c 'import pytest' 2>/dev/null || "$PYTHON" -m pip install -q pytest
TABLE=''
case ${1:-} in '' | -*) ;; *) TABLE=$1 && shift ;; esac

# Each in a process of its own, as only one at a time can have the device.
check() {
    _file=$1 && shift
    "$PYTHON" -m pytest -xv --no-header -p no:cacheprovider "$ROOT/tests/npu/$_file.py" --table "$TABLE" "$@"
}
on_ranks() {
    _ranks=$1 && shift
    "$PYTHON" -m src.cluster.launch "$_ranks" "$ROOT/tests/npu/on_ranks.py" "$@"
}

check test_environment --first "$@"
# The first thing to know of a server: whether ranks start at all.
[ "$NPU" ] && [ "$(ls /dev/davinci[0-9]* | wc -l)" -lt 2 ] || on_ranks 2 -k start "$@"
# Not every NPU may take a step that branches on overflow, or may even crash: all is then checked without the branch.
OVERFLOW=branch STATUS=0
check test_device "$@" || STATUS=$?
case $STATUS in
0) ;;
10 | 134 | 139)
    OVERFLOW=select
    set -- --drop_overflow_update "$OVERFLOW" "$@"
    echo "again with $1 $2"
    check test_device "$@"
    ;;
*) exit "$STATUS" ;;
esac
check test_speed "$@"
[ -z "$NPU" ] || check test_speed --jit_level O0 "$@"
[ -z "$TABLE" ] || on_ranks "$TABLE" "$@"
check test_trainings "$@"
check test_exports "$@"
[ "$OVERFLOW" = branch ] || echo "train with --drop_overflow_update $OVERFLOW: with a branch on overflow the check above failed"
echo "passed after $(($(date +%s) - BEGAN)) s, with --drop_overflow_update $OVERFLOW"
