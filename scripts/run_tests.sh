#!/usr/bin/env bash
# usage: bash scripts/run_tests.sh [--slow] [pytest arguments]; installs what the tests need into ROOT/.venv
set -e
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
if ! "$PYTHON" -c 'import pytest' 2>/dev/null; then
    [ "$PYTHON" = "$ROOT/.venv/bin/python" ] || "$PYTHON" -m venv "$ROOT/.venv"
    PYTHON="$ROOT/.venv/bin/python"
    "$PYTHON" -m pip install -q -r "$ROOT/requirements-test.txt"
fi
if [ "${1:-}" = --slow ]; then shift; set -- -m 'slow or not slow' "$@"; fi
cd "$ROOT"
exec "$PYTHON" -m pytest -q "$@"
