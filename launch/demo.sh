#!/bin/sh
# Installs into .venv and colors the photos that the repository ships, with the
# weights that it ships.
# Usage: launch/demo.sh [FOLDER, default: colored]
set -eu
cd "$(dirname "$0")/.."
out=${1:-colored}
bin=$(sh launch/install.sh)
"$bin/coltran" colorize launch/photos --output "$out" \
  --weights coltran-sports \
  --before-after "$out/before-after.jpg"
echo "see $out/before-after.jpg"
