# shellcheck shell=bash
# For the scripts beside it to source, in the repository's root.

# Prints a Python that is new enough; PYTHON=/path/to/python goes first.
find_python() {
  local python
  for python in ${PYTHON:+"$PYTHON"} python3.11 python3; do
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$python"
      return
    fi
  done
  echo "dreamjax needs Python 3.11 or newer, and neither python3.11 nor python3 is: set PYTHON=/path/to/python" >&2
  return 1
}

# use_venv WHAT: leaves in $venv a virtual environment in which WHAT (such as '.[test]') is installed.
# That is .venv, made where missing and updated after setup.py changed; or DREAMJAX_VENV, which is used as it is.
use_venv() {
  venv=${DREAMJAX_VENV:-.venv}
  [[ -z ${DREAMJAX_VENV:-} ]] || return 0
  local python stamp=$venv/.installed-${1//[^a-z0-9]/}
  if [[ ! -x $venv/bin/pip ]]; then
    python=$(find_python)
    echo "making the virtual environment $venv" >&2
    "$python" -m venv "$venv"
  fi
  if [[ setup.py -nt $stamp ]]; then
    echo "installing dreamjax into $venv: a minute or two" >&2
    "$venv/bin/pip" install --quiet --disable-pip-version-check --editable "$1"
    touch "$stamp"
  fi
}
