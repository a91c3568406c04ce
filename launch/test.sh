#!/usr/bin/env bash
# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
# Lint, format and all tests: bash launch/test.sh [--interop] [--onnx] [arguments of pytest]
# --interop also installs the third-party libraries that some tests compare with.
# --onnx makes a second environment for jax2onnx, which pins an old Orbax.
set -euo pipefail
# shellcheck source=launch/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

extras=dev
onnx=
while [ "${1:-}" = --interop ] || [ "${1:-}" = --onnx ]; do
  if [ "$1" = --interop ]; then extras=dev,interop; else onnx=yes; fi
  shift
done
if [ -n "$onnx" ]; then
  # In a shell of its own, which stops at the first error and keeps its PATH: one test
  # calls this python. Where it can not be installed, that test is skipped and says so.
  if VENV=$venv-onnx bash -euc 'source launch/env.sh; environment onnx'; then
    export G2SD_ONNX_PYTHON=$venv-onnx/bin/python
  else
    echo "jax2onnx could not be installed; the test of ONNX is skipped" >&2
  fi
fi
environment "$extras"
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/.cache/jax}

ruff check .
ruff format --check .
pytest -n 2 "$@"
