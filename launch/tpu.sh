#!/usr/bin/env bash
# Runs dreamjax on a Cloud TPU VM, on all of its hosts. Each step is one call; --dry-run in front prints its commands.
#
#   ./launch/tpu.sh create  NAME ZONE TYPE [--spot] [--queued]   make it, or queue for it (TYPE: v5litepod-16, v6e-8...)
#   ./launch/tpu.sh install NAME ZONE [--bucket BUCKET | --nfs HOST:/SHARE]   install this commit; mount ~/shared
#   ./launch/tpu.sh push    NAME ZONE FOLDER                     copy a folder, such as photos, into shared
#   ./launch/tpu.sh run     NAME ZONE dreambooth ARGUMENTS...    in ~/shared; follow the log of the first host
#   ./launch/tpu.sh log     NAME ZONE [HOST]                     follow it again, or that of another host, from 0
#   ./launch/tpu.sh stop    NAME ZONE                            let it save and end
#   ./launch/tpu.sh fetch   NAME ZONE FOLDER                     copy shared/FOLDER here
#   ./launch/tpu.sh delete  NAME ZONE [--queued]
#
# A run goes on after the connection ends, and is restarted after an interruption. A spot TPU that is preempted is gone
# with its disk, and nothing brings it back: delete, create, install and run again, with the same arguments, and the run
# goes on where it was, if shared outlived the TPU. A bucket does (it is made where missing; the TPU's service account
# must be allowed to write there), or NFS, such as a Filestore instance. A TPU of several hosts needs either anyway.
set -euo pipefail
here=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/steps.sh
source launch/steps.sh

# The runtime that Google names for a type of TPU.
runtime_of() {
  case $1 in
    v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *)
      echo "no runtime is known for the type $1: it is like v4-8, v5litepod-16, v5p-8 or v6e-8" >&2
      exit 2
      ;;
  esac
}

[[ $# -ge 3 ]] || usage
what=$1 name=$2 zone=$3
shift 3
tpu=(gcloud compute tpus tpu-vm)
queue=(gcloud compute tpus queued-resources)
# on WORKERS COMMAND: runs a command on hosts: "all", or a number.
on() {
  run "${tpu[@]}" ssh "$name" --zone="$zone" --worker="$1" --command="$2"
}

case $what in
  create)
    [[ $# -ge 1 ]] || usage
    type=$1 queued='' spot=()
    shift
    for option; do
      case $option in
        --spot) spot=(--spot) ;;
        --queued) queued=yes ;;
        *) usage ;;
      esac
    done
    runtime=$(runtime_of "$type")
    if [[ -n $queued ]]; then
      run "${queue[@]}" create "$name" --node-id="$name" --zone="$zone" --accelerator-type="$type" \
        --runtime-version="$runtime" "${spot[@]}"
      echo "it is there when its state is ACTIVE: ${queue[*]} describe $name --zone=$zone --format='value(state.state)'" >&2
    else
      run "${tpu[@]}" create "$name" --zone="$zone" --accelerator-type="$type" --version="$runtime" "${spot[@]}"
    fi
    ;;
  install)
    if [[ $# -gt 0 ]]; then
      [[ $# -eq 2 && ($1 == --bucket || $1 == --nfs) ]] || usage
    fi
    if [[ ${1:-} == --bucket ]]; then
      make_bucket "$2" "$zone"
    fi
    temporary_folder
    run git archive --format=tar.gz --prefix=dreamjax/ --output="$folder/dreamjax.tar.gz" HEAD
    run "${tpu[@]}" scp "$folder/dreamjax.tar.gz" "$name:" --zone="$zone" --worker=all
    on all "mkdir -p shared && tar xf dreamjax.tar.gz && sudo apt-get update -qq && \
sudo apt-get install -y -qq python3.11-venv nfs-common && python3.11 -m venv venv && \
venv/bin/pip install --quiet './dreamjax[tpu]'"
    if [[ $# -gt 0 ]]; then
      on all "dreamjax/launch/host.sh share$(printf ' %q' "$@")"
    fi
    ;;
  push | fetch)
    [[ $# -eq 1 ]] || usage
    if [[ $what == push ]]; then
      [[ $1 == /* ]] || set -- "$here/$1"
      run "${tpu[@]}" scp --recurse "$1" "$name:shared/" --zone="$zone" --worker=0
    else
      run "${tpu[@]}" scp --recurse "$name:shared/$1" "$here" --zone="$zone" --worker=0
    fi
    ;;
  run)
    [[ $# -ge 1 ]] || usage
    on all "dreamjax/launch/host.sh begin$(printf ' %q' "$@")"
    on 0 "dreamjax/launch/host.sh log"
    ;;
  log)
    [[ $# -le 1 ]] || usage
    on "${1:-0}" "dreamjax/launch/host.sh log"
    ;;
  stop)
    on all "dreamjax/launch/host.sh stop"
    ;;
  delete)
    if [[ ${1:-} == --queued ]]; then
      run "${queue[@]}" delete "$name" --zone="$zone" --force --quiet
    else
      run "${tpu[@]}" delete "$name" --zone="$zone" --quiet
    fi
    ;;
  *) usage ;;
esac
