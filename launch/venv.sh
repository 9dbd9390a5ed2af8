# shellcheck shell=bash
# Sourced by the other scripts, in the repository's root.

# Prints a Python that is new enough: PYTHON where that is set, otherwise python3.11 or python3.
find_python() {
  local python
  if [[ -n ${PYTHON:-} ]]; then
    _is_new_enough "$PYTHON" || { echo "PYTHON=$PYTHON does not run, or is older than Python 3.11" >&2; return 1; }
    echo "$PYTHON"
    return
  fi
  for python in python3.11 python3; do
    if _is_new_enough "$python"; then
      echo "$python"
      return
    fi
  done
  echo "dreamjax needs Python 3.11 or newer, and neither python3.11 nor python3 is: set PYTHON=/path/to/python" >&2
  return 1
}

_is_new_enough() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

# find_python_version 3.13: prints a Python of this version, from the PATH or from pyenv; nothing where there is none.
find_python_version() {
  local python root
  root=${PYENV_ROOT:-$(pyenv root 2>/dev/null || echo ~/.pyenv)}
  for python in "python$1" "$root/versions/$1".*/bin/python; do
    if [[ $(_version "$python") == "$1" ]]; then
      echo "$python"
      return
    fi
  done
}

_version() {
  "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true
}

# use_venv WHAT: sets $venv to a virtual environment in which WHAT (such as '.[test]') is installed.
# That is .venv, made where missing and updated after setup.py changed; or DREAMJAX_VENV, which is used unchanged.
use_venv() {
  venv=${DREAMJAX_VENV:-.venv}
  [[ -z ${DREAMJAX_VENV:-} ]] || return 0
  local python stamp=$venv/.installed-${1//[^a-z0-9]/}
  if [[ ! -x $venv/bin/pip ]]; then
    python=$(find_python)
    echo "making the virtual environment $venv" >&2
    "$python" -m venv "$venv"
  elif [[ -n ${PYTHON:-} ]]; then
    python=$(find_python)
    if [[ $(_version "$python") != $(_version "$venv/bin/python") ]]; then
      echo "$venv holds Python $(_version "$venv/bin/python"), but PYTHON=$PYTHON is $(_version "$python"):" \
        "remove $venv, or unset PYTHON" >&2
      return 1
    fi
  fi
  if [[ setup.py -nt $stamp ]]; then
    echo "installing dreamjax into $venv: a minute or two" >&2
    "$venv/bin/pip" install --quiet --disable-pip-version-check --editable "$1"
    touch "$stamp"
  fi
}
