#!/bin/sh
# Installs the package of this checkout into the virtual environment .venv,
# made if need be, at the versions that CI uses; prints the folder of its
# programs. Usage: launch/install.sh [EXTRAS, as in '[test]']
set -eu
cd "$(dirname "$0")/.."
if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then # None, or half.
  for python in python3.11 python3.12 python3.13 python3 ''; do
    if [ -z "$python" ]; then
      echo 'coltran-jax needs Python 3.11 or newer' >&2
      exit 1
    fi
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
      2>/dev/null; then
      break
    fi
  done
  echo "making .venv with $python" >&2
  "$python" -m venv --clear .venv >&2
fi
echo 'installing (a few minutes the first time)' >&2
.venv/bin/python -m pip install --quiet --disable-pip-version-check \
  --constraint constraints.txt --editable ".${1:-}" >&2
echo "$PWD/.venv/bin"
