#!/bin/sh
# usage: bash scripts/run_demo.sh [OUTPUT_DIR] [--seed N] [--option value ...]; installs what it needs; --help says more
. "$(dirname "$(readlink -f "$0")")/environment.sh" || exit
exec "$PYTHON" "$ROOT/scripts/module.py" src.workflow demo "$@"
