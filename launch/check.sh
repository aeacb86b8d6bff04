#!/bin/sh
# Installs into .venv, then runs lint and all tests, two at a time; arguments go
# to pytest.
set -eu
cd "$(dirname "$0")/.."
bin=$(sh launch/install.sh '[test]')
"$bin/ruff" check .
"$bin/ruff" format --check .
"$bin/python" -m pytest --numprocesses 2 "$@"
