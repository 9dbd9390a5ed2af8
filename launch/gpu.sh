#!/usr/bin/env bash
# Runs dreamjax on all NVIDIA GPUs of this machine, in a virtual environment that it makes. --dry-run in front prints
# the commands.
#
#   ./launch/gpu.sh dreambooth --images photos --class-noun dog --workdir runs/dog
#   CUDA=12 ./launch/gpu.sh ...    for a driver that is too old for CUDA 13 (nvidia-smi says below 580)
set -euo pipefail
here=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/steps.sh
source launch/steps.sh
# shellcheck source=launch/venv.sh
source launch/venv.sh

[[ $# -ge 1 ]] || usage
what=".[cuda${CUDA:-13}]"
gpus=$({ nvidia-smi --list-gpus 2>/dev/null || true; } | wc -l)
[[ $gpus -gt 0 || -n $dry ]] || { echo "nvidia-smi lists no GPU" >&2; exit 1; }
mesh=()
case $1 in
  dreambooth | styledrop | sample | pretrain | evaluate)
    if [[ $gpus -gt 1 && " $* " != *" --mesh"[\ =]* ]]; then
      mesh=(--mesh data=-1)
    fi
    ;;
esac
if [[ -n $dry ]]; then
  venv=${DREAMJAX_VENV:-$PWD/.venv}
  if [[ -z ${DREAMJAX_VENV:-} ]]; then
    python=$(find_python)
    [[ -x $venv/bin/pip ]] || run "$python" -m venv "$venv"
    run "$venv/bin/pip" install --editable "$PWD${what#.}"
  fi
  run "$venv/bin/dreamjax" "$@" "${mesh[@]}"
  exit
fi
use_venv "$what"
dreamjax=$(realpath "$venv")/bin/dreamjax
cd "$here"
exec "$dreamjax" "$@" "${mesh[@]}"
