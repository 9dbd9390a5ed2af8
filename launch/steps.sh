# shellcheck shell=bash
# Sourced by the other scripts, in the repository's root and with their own arguments: usage, --dry-run in front, run,
# and the steps that several of them take.

# Prints the comment at the script's top, and ends.
usage() {
  sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "launch/$(basename "$0")" >&2
  exit 2
}

dry=
if [[ ${1:-} == --dry-run ]]; then
  dry=yes
  shift
fi

# Runs a command, or prints it so that it can be pasted.
run() {
  if [[ -n $dry ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

# Sets $folder to a new folder, which is removed when the script ends.
temporary_folder() {
  if [[ -n $dry ]]; then
    folder=/tmp/dreamjax
    run mkdir -p "$folder"
  else
    folder=$(mktemp -d)
  fi
  trap 'run rm -r "$folder"' EXIT
}

# make_bucket BUCKET ZONE: makes a bucket near a zone, unless there is one of that name. It has hierarchical folders:
# checkpoints are moved into place by renaming folders, which a bucket without them does one file after another.
make_bucket() {
  if [[ -n $dry ]] || ! gcloud storage buckets describe "gs://$1" >/dev/null 2>&1; then
    run gcloud storage buckets create "gs://$1" --location="${2%-*}" --uniform-bucket-level-access \
      --enable-hierarchical-namespace
  fi
}
