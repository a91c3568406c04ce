#!/usr/bin/env bash
# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
# Lint, format and tests:
#   bash launch/test.sh [--interop] [--tpu] [--onnx] [--newest] [arguments of pytest]
# --all, which is one of ours for pytest, also runs the tests that are marked slow, and
# --minutes=35 begins none of those later than that after the start.
# --interop also installs the third-party libraries that some tests compare with.
# --tpu also installs libtpu, with which some tests compile for a TPU that is not here.
# --onnx makes a second environment for jax2onnx, which pins an old Orbax.
# --newest makes another one with the newest releases of all libraries, which need a
#   newer Python, and runs in it the tests that a new library is most likely to break.
set -euo pipefail
# shellcheck source=launch/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

# What new libraries may break: numbers, recipes, and a run's bit-exact resume.
GOLDENS=(tests/test_golden_{classification,segmentation,detection}.py)
NEWEST_TESTS=(
  tests/test_checkpoint.py
  tests/test_configs.py
  tests/test_loop.py::test_resume_equals_uninterrupted_bit_for_bit
  tests/programs/test_kill.py
)

extras=dev
onnx=
newest=
while true; do
  case "${1:-}" in
    --interop) extras+=,interop ;;
    --tpu) extras+=,tpu ;;
    --onnx) onnx=yes ;;
    --newest) newest=yes ;;
    *) break ;;
  esac
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
if [ -n "$newest" ]; then
  # Before any test: where it can not be installed, that is an error, and known at once.
  python=$(newest_python)
  PYTHON=$python VENV=$venv-newest bash -euc 'source launch/env.sh; upgraded dev'
fi
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/.cache/jax}

ruff check .
ruff format --check .
# Each worker begins with half of the files, so that most modules run their runs once.
pytest -n 2 --dist worksteal "$@"
if [ -n "$newest" ]; then
  export PATH=$venv-newest/bin:$PATH
  python -VV
  pip list --disable-pip-version-check | grep -E '^(jax|jaxlib|flax|optax|orbax-checkpoint|numpy) '
  # The numbers of programs as users have them: tests else leave most optimisations out.
  JAX_DISABLE_MOST_OPTIMIZATIONS=0 pytest -n 2 --dist worksteal "${GOLDENS[@]}"
  pytest -n 2 --dist worksteal "${NEWEST_TESTS[@]}"
fi
