#!/bin/sh
# usage: bash scripts/run_tests.sh [--fast | --slow] [pytest arguments]; --fast: those that compile no graph, --slow: all.
# Installs what the tests need into ROOT/.venv
set -e
. "$(dirname "$(readlink -f "$0")")/environment.sh" || exit
if ! "$PYTHON" -c 'import pytest, xdist, ruff, matplotlib, importlinter' 2>/dev/null; then
    [ "$PYTHON" = "$ROOT/.venv/bin/python" ] || "$PYTHON" -m venv $VENV_OPTIONS "$ROOT/.venv"
    PYTHON="$ROOT/.venv/bin/python"
    "$PYTHON" -m pip install -q -r "$ROOT/requirements-test.txt"
fi
cd "$ROOT"
"$PYTHON" -m ruff check -q .
"$PYTHON" -m ruff format -q --check .
if [ "${1:-}" = --slow ]; then
    shift
    exec "$PYTHON" -m pytest -q -m 'slow or not slow' "$@"
fi
if [ "${1:-}" = --fast ]; then
    shift
    set -- -m 'not slow and not compiles' "$@"
fi
# Two at a time: most of the time goes into compiling graphs, which uses one core.
exec "$PYTHON" -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --durations 12 "$@"
