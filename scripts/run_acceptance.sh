#!/bin/sh
# usage: bash scripts/run_acceptance.sh [RANK_TABLE] [--device_target CPU] [--device_id N] [--output DIR]; checks what
# the project needs of this machine, about five minutes plus the compilations. RANK_TABLE: a number of devices, or the file
. "$(dirname "$(readlink -f "$0")")/environment.sh" || exit
exec "$PYTHON" "$ROOT/scripts/module.py" src.acceptance "$@"
