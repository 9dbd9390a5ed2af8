#!/usr/bin/env bash
# The commands that tpu.sh runs on each host of a TPU. A run goes on after the connection that began it ends.
#
#   ~/dreamjax/launch/host.sh share --bucket BUCKET | --nfs HOST:/SHARE    mounts ~/shared, which outlives the host
#   ~/dreamjax/launch/host.sh begin ARGUMENTS...    dreamjax in ~/shared, restarted while it is interrupted
#   ~/dreamjax/launch/host.sh log                   its output, until it ends; then this ends with its status
#   ~/dreamjax/launch/host.sh stop                  lets it save and end
set -euo pipefail
self=$(realpath "${BASH_SOURCE[0]}")
cd ~ # with venv, shared, share (the source of shared), run.pid, run.log and run.status

# Mounts the source of shared, unless it is mounted; a reboot of the host unmounts it.
mount_shared() {
  local kind source
  [[ -e share ]] || return 0
  read -r kind source <share
  if mountpoint --quiet shared; then
    return
  elif [[ $kind == --nfs ]]; then
    sudo mount -t nfs -o rw "$source" shared
    sudo chown "$(id -u)" shared
  else # without caches, so that the hosts see each other's files at once
    gcsfuse --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 "$source" shared
  fi
}

install_gcsfuse() {
  local key=/usr/share/keyrings/gcsfuse.asc site=https://packages.cloud.google.com/apt
  curl -fsSL "$site/doc/apt-key.gpg" | sudo tee "$key" >/dev/null
  echo "deb [signed-by=$key] $site gcsfuse-$(lsb_release -cs) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  sudo apt-get update -qq
  sudo apt-get install -y -qq gcsfuse
}

is_going() {
  [[ -e run.pid ]] && kill -0 "$(<run.pid)" 2>/dev/null
}

# Runs a command, and restarts it while it ends with the status of an interruption: 75 (it saved on SIGTERM, or lost
# another process), 134 (JAX itself, where it lost a process or found none), 137 or 143 (it was killed). The third in
# a row that took less than ten minutes is the last: JAX waits five for a process, which may be gone for good.
keep() {
  local began status short=0 stopped=
  trap 'stopped=yes' TERM # the command, of the same process group, gets the signal as well
  while true; do
    began=$SECONDS status=0
    "$@" || status=$?
    [[ -z $stopped && $status =~ ^(75|134|137|143)$ ]] || return "$status"
    short=$((SECONDS - began < 600 ? short + 1 : 0))
    [[ $short -lt 3 ]] || break
    echo "dreamjax ended with the status $status, and is started again"
  done
  echo "dreamjax ended with the status $status, and so soon for the third time in a row: it is not started again"
  return "$status"
}

what=${1:-}
case $what in
  share)
    echo "$2 $3" >share
    [[ $2 == --nfs ]] || command -v gcsfuse >/dev/null || install_gcsfuse
    mount_shared
    ;;
  begin)
    shift
    if is_going; then
      echo "a run is going on here: follow its log, or stop it" >&2
      exit 1
    fi
    mount_shared
    rm -f run.status
    setsid "$self" keep "$@" >run.log 2>&1 </dev/null &
    echo $! >run.pid
    ;;
  keep)
    shift
    cd shared
    export PYTHONUNBUFFERED=1 JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/.xla}
    status=0
    keep ../venv/bin/dreamjax "$@" --hosts auto || status=$?
    echo "$status" >../run.status
    ;;
  log)
    [[ -e run.pid ]] || { echo "nothing was run here" >&2; exit 1; }
    tail --lines=+1 --follow --pid="$(<run.pid)" run.log
    [[ -e run.status ]] || { echo "the host went down, or the run was killed: run it again to go on" >&2; exit 1; }
    exit "$(<run.status)"
    ;;
  stop)
    if is_going; then
      kill -TERM -- "-$(<run.pid)"
      tail --follow --pid="$(<run.pid)" /dev/null
    fi
    ;;
  *)
    echo "host.sh share | begin | log | stop, not '$what'" >&2
    exit 2
    ;;
esac
