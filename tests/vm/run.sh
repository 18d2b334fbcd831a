#!/usr/bin/env bash
# Runs in the virtual machine: scripts/vm-run [-o OUT] tests/vm/run.sh [--twice] [PYTEST-ARGUMENT...]
# --twice: tries failed tests once more, see scripts/pytest-twice.
set -euo pipefail
cd /mnt/project
# Through a pipe: the console is a terminal, but not one on which lines can be written over.
export PYTHONUNBUFFERED=1 SEALPOINT_TEST_TIMEOUT=300
pytest=(.venv/bin/python -m pytest -p no:cacheprovider)
if [ "${1-}" = --twice ]; then
    shift
    pytest=(scripts/pytest-twice .venv/bin/python)
fi
"${pytest[@]}" -m vm -o timeout=1200 --junitxml=/mnt/out/junit.xml --durations=5 \
    "$@" tests/vm | cat
