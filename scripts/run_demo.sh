#!/usr/bin/env bash
# usage: bash scripts/run_demo.sh [OUTPUT_DIR] [--seed N]; installs what it needs, draws its data, and trains in some minutes
MORE_REQUIREMENTS=requirements-report.txt
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
exec "$PYTHON" -m src.demo "$@"
