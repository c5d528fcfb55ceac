#!/bin/sh
# usage: bash scripts/run_predict.sh IMAGE_OR_DIR|PATTERN|LIST.txt|- ... --model FILE [--option value ...]; --help lists the options
. "$(dirname "$(readlink -f "$0")")/environment.sh" || exit
exec "$PYTHON" "$ROOT/scripts/module.py" src.deploy.predict "$@"
