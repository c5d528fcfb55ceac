#!/bin/sh
# usage: bash scripts/run_export.sh --ckpt_path CKPT [--option value ...]; default_config.yaml lists the options
. "$(dirname "$(readlink -f "$0")")/environment.sh" || exit
exec "$PYTHON" "$ROOT/export.py" "$@"
