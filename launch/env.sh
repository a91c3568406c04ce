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

# environment [EXTRAS]: makes the virtual environment and puts it on PATH. It installs
# again only when the requirements changed.
environment() {
  local extras=${1:-} candidate python=""
  if [ ! -x "$venv/bin/pip" ]; then
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
      if supported "$candidate"; then python=$candidate && break; fi
    done
    if [ -z "$python" ]; then
      echo "error: no Python 3.11 to 3.13 in PATH (looked for ${PYTHON:-python3, python3.13," \
        "python3.12, python3.11}); name one: PYTHON=/path/to/python3.12 bash $0" >&2
      exit 2
    fi
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
