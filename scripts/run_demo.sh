#!/usr/bin/env bash
# usage: bash scripts/run_demo.sh [OUTPUT_DIR] [--seed N]; makes its own environment and data, and trains in minutes
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
exec "$PYTHON" -m src.demo "$@"
