#!/usr/bin/env bash
# Draws the toybox into a folder, in a virtual environment that it makes: ./launch/demo.sh [FOLDER]
set -euo pipefail
out=${1:-}
[[ -z $out || $out == /* ]] || out=$PWD/$out
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/venv.sh
source launch/venv.sh

out=${out:-$PWD/demo/toybox}
use_venv .
"$venv/bin/dreamjax" toybox --out "$out" --overwrite
[[ -f $out/sheet.png ]] || { echo "the demo left no $out/sheet.png" >&2; exit 1; }
echo "Look at $out/sheet.png"
