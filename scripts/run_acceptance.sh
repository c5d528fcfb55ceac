#!/bin/sh
# usage: bash scripts/run_acceptance.sh [RANK_TABLE] [--device_target CPU] [--device_id N] [--output DIR]; checks what
# the project needs of this machine, on NPUs 20 to 50 minutes; RANK_TABLE may be a number of ranks
. "$(dirname "$(readlink -f "$0")")/environment.sh" || exit
exec "$PYTHON" "$ROOT/scripts/module.py" src.acceptance "$@"
