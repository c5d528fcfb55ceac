#!/usr/bin/env bash
# usage: bash scripts/run_acceptance.sh [RANK_TABLE] [--device_target CPU] [--device_id N] [--output DIR]; checks what
# the project needs of this machine, about five minutes plus the compilations; on a CPU RANK_TABLE may be a number of ranks
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
exec "$PYTHON" -m src.acceptance "$@"
