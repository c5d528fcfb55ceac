#!/usr/bin/env bash
# usage: bash scripts/run_predict.sh IMAGE_OR_DIR|PATTERN|LIST.txt|- ... --model FILE [--option value ...]; --help lists the options
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
exec "$PYTHON" -m src.deploy.predict "$@"
