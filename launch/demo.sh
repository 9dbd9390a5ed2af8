#!/usr/bin/env bash
# Teaches the toybox's cascade a toy that it was not trained on from four photos, and generates images of that toy, in a
# virtual environment that it makes: ./launch/demo.sh [FOLDER]
set -euo pipefail
out=${1:-}
[[ -z $out || $out == /* ]] || out=$PWD/$out
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/venv.sh
source launch/venv.sh

out=${out:-$PWD/demo}
use_venv .
"$venv/bin/dreamjax" demo --out "$out"
[[ -f $out/sheet.png ]] || { echo "the demo left no $out/sheet.png" >&2; exit 1; }
echo "Look at $out/sheet.png"
