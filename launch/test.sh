#!/usr/bin/env bash
# Checks the code's style and runs the tests, in a virtual environment that it makes: ./launch/test.sh
#
# Arguments go to pytest:
#   ./launch/test.sh --slow               the slow tests too
#   ./launch/test.sh -n0 -x tests/theta   one folder, in one process, until the first failure
# Tests that compare with the torch originals are skipped where torch is missing: .venv/bin/pip install '.[parity]'
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/venv.sh
source launch/venv.sh

use_venv '.[test]'
"$venv/bin/ruff" check --quiet .
"$venv/bin/ruff" format --check --quiet .
"$venv/bin/pytest" --numprocesses=logical --maxprocesses=8 --dist=worksteal "$@"
