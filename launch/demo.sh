#!/bin/sh
# Installs into .venv and colors the photos that the repository ships.
# Usage: launch/demo.sh [FOLDER, default: colored]
set -eu
cd "$(dirname "$0")/.."
out=${1:-colored}
bin=$(sh launch/install.sh)
weights=$out/weights
if [ ! -d "$weights" ]; then
  # Random weights in the published format: they show that all works, not how
  # well the trained model colors.
  "$bin/coltran" convert tests/fixtures/pipeline/tf_checkpoints "$weights"
fi
"$bin/coltran" colorize launch/photos --output "$out" --weights "$weights" \
  --before-after "$out/before-after.jpg"
echo "see $out/before-after.jpg"
