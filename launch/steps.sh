# shellcheck shell=bash
# For the scripts beside it to source, in the repository's root and with their arguments as they are: usage, --dry-run
# in front, and run.

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
