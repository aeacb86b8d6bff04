#!/bin/sh
# Installs into .venv, then runs lint and all tests, two at a time; arguments go
# to pytest.
set -eu
cd "$(dirname "$0")/.."
# The web page is tested in Chromium.
if ! command -v chromedriver >/dev/null && [ "$(id -u)" = 0 ]; then
  (apt-get update -qq &&
    apt-get install -qq -y --no-install-recommends chromium chromium-driver) ||
    true
fi
if ! command -v chromedriver >/dev/null; then
  echo 'NOT TESTED: the web page, without chromium and chromedriver' >&2
  set -- -m 'not browser' "$@"
fi
bin=$(sh launch/install.sh '[test]')
"$bin/ruff" check .
"$bin/ruff" format --check .
"$bin/python" -m pytest --numprocesses 2 "$@"
