#!/usr/bin/env bash
# Runs dreamjax on TPUs of Google Kubernetes Engine, by xpk (pip install xpk; it wants gcloud, kubectl and docker). Each
# step is one call; --dry-run in front prints its commands.
#
#   ./launch/gke.sh create CLUSTER ZONE TYPE BUCKET [--spot]     a cluster that mounts a bucket as /shared
#   ./launch/gke.sh push   BUCKET FOLDER                         copy a folder, such as photos, into the bucket
#   ./launch/gke.sh run    CLUSTER ZONE TYPE NAME dreambooth ARGUMENTS...   in /shared; this commit, as a workload NAME
#   ./launch/gke.sh fetch  BUCKET FOLDER                         copy a folder of the bucket here
#   ./launch/gke.sh delete CLUSTER ZONE [NAME]                   a workload, or the cluster; never the bucket
#
# TYPE is like v5litepod-16 or v6e-8. The bucket is made where missing; one that exists should have hierarchical
# folders, so that checkpoints are moved into place at once, by renaming them.
set -euo pipefail
here=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/steps.sh
source launch/steps.sh

[[ $# -ge 3 ]] || usage
what=$1
shift
case $what in
  create)
    [[ $# -eq 4 || ($# -eq 5 && $5 == --spot) ]] || usage
    cluster=$1 zone=$2 type=$3 bucket=$4
    make_bucket "$bucket" "$zone"
    run xpk cluster create --cluster="$cluster" --zone="$zone" --tpu-type="$type" --num-slices=1 "${5:---on-demand}" \
      --enable-gcsfuse-csi-driver
    run xpk storage attach shared --type=gcsfuse --cluster="$cluster" --zone="$zone" --bucket="$bucket" --size=1 \
      --mount-point=/shared --readonly=false --auto-mount=true
    ;;
  push | fetch)
    [[ $# -eq 2 ]] || usage
    if [[ $what == push ]]; then
      [[ $2 == /* ]] || set -- "$1" "$here/$2"
      run gcloud storage cp --recursive "$2" "gs://$1/"
    else
      run gcloud storage cp --recursive "gs://$1/$2" "$here"
    fi
    ;;
  run)
    [[ $# -ge 5 ]] || usage
    cluster=$1 zone=$2 type=$3 name=$4
    shift 4
    temporary_folder
    run git archive --format=tar --output="$folder/dreamjax.tar" HEAD
    # xpk puts the folder into a Docker image, as /app, and the command, of one line, into a manifest. SIGTERM goes to the
    # shell that runs the command: exec makes that dreamjax, and a checkpoint has five minutes to get to the bucket.
    # 75 is the status of a program that saved on SIGTERM; statuses above 127, of a lost process, are known to xpk.
    install="mkdir dreamjax && tar xf dreamjax.tar -C dreamjax && pip install --quiet './dreamjax[tpu]'"
    start="cd /shared && JAX_COMPILATION_CACHE_DIR=/shared/.xla exec dreamjax $(printf '%q ' "$@")--hosts auto"
    run xpk workload create --cluster="$cluster" --zone="$zone" --workload="$name" --tpu-type="$type" --num-slices=1 \
      --base-docker-image=python:3.11 --script-dir="$folder" --max-restarts=50 --restart-on-exit-codes=75 \
      --termination-grace-period-seconds=300 --command="$install && $start"
    ;;
  delete)
    [[ $# -eq 2 || $# -eq 3 ]] || usage
    if [[ $# -eq 3 ]]; then
      run xpk workload delete --cluster="$1" --zone="$2" --workload="$3"
    else
      run xpk cluster delete --cluster="$1" --zone="$2"
    fi
    ;;
  *) usage ;;
esac
