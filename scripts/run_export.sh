#!/usr/bin/env bash
# usage: bash scripts/run_export.sh --ckpt_path CKPT [--option value ...]; default_config.yaml lists the options
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
exec "$PYTHON" "$ROOT/export.py" "$@"
