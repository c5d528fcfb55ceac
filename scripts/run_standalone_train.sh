#!/usr/bin/env bash
# usage: bash scripts/run_standalone_train.sh [--option value ...]; default_config.yaml lists the options
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
exec "$PYTHON" "$ROOT/train.py" "$@"
