#!/usr/bin/env bash
# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
# Lint, format and all tests: bash launch/test.sh [--interop] [arguments of pytest]
# --interop also installs the third-party libraries that some tests compare with.
set -euo pipefail
# shellcheck source=launch/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

extras=dev
if [ "${1:-}" = --interop ]; then
  extras=dev,interop
  shift
fi
environment "$extras"
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/.cache/jax}

ruff check .
ruff format --check .
pytest -n 2 "$@"
