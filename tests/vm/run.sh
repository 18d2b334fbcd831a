#!/usr/bin/env bash
# Runs in the virtual machine: scripts/vm-run -t 1800 tests/vm/run.sh [OPTIONS OF PYTEST]
set -euo pipefail
cd /mnt/project
export PYTHONPATH=/mnt/project/src PYTHONDONTWRITEBYTECODE=1 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
exec /opt/sealpoint-venv/bin/python -m pytest -p no:cacheprovider -m vm "$@" tests/vm
