# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Sourced by the scripts beside it: the repository as working directory, and `environment`.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
venv=${VENV:-$PWD/.venv}

# XLA on a CPU takes fresh memory for every large temporary, which the kernel zeroes page
# by page: huge pages make the generic-distillation step a sixth shorter.
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}

supported() {
  "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
}

# first_supported CANDIDATE…: the first of them that runs and is a Python we support.
first_supported() {
  local candidate
  for candidate in "$@"; do
    if supported "$candidate"; then echo "$candidate" && return; fi
  done
  return 1
}

# newest_python: a Python that the newest JAX runs on, in PATH or of pyenv, or else one
# that uv, which comes with pip, fetches.
newest_python() {
  first_supported python3.13 python3.12 \
    "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.13*/bin/python \
    "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.12*/bin/python && return
  echo "neither python3.13 nor python3.12 is here; uv fetches one" >&2
  pip install --quiet --disable-pip-version-check uv >&2 &&
    uv python install 3.13 >&2 && uv python find 3.13
}

# environment [EXTRAS]: makes the virtual environment and puts it on PATH. It installs
# again only when the requirements changed.
environment() {
  local extras=${1:-} python
  if [ ! -x "$venv/bin/pip" ]; then
    # Several names in PYTHON are tried one after the other.
    # shellcheck disable=SC2086
    python=$(first_supported ${PYTHON:-python3 python3.13 python3.12 python3.11}) || {
      echo "error: no Python 3.11 to 3.13 in PATH (looked for ${PYTHON:-python3, python3.13," \
        "python3.12, python3.11}); name one: PYTHON=/path/to/python3.12 bash $0" >&2
      exit 2
    }
    "$python" -m venv "$venv"
  fi
  local stamp="$venv/installed-${extras:-core}" wanted
  wanted=$(cat setup.cfg requirements.txt pyproject.toml | cksum)
  if [ "$wanted" != "$(cat "$stamp" 2>/dev/null)" ]; then
    echo "installing g2sd_jax${extras:+[$extras]} into $venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check -e ".${extras:+[$extras]}"
    echo "$wanted" > "$stamp"
  fi
  export PATH="$venv/bin:$PATH"
}

# upgraded [EXTRAS]: the same with the newest release of every library.
upgraded() {
  environment "$@"
  "$venv/bin/pip" install --quiet --disable-pip-version-check --upgrade \
    --upgrade-strategy eager -e ".${1:+[$1]}"
}
