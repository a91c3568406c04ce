#!/usr/bin/env bash
# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
# The whole method on scikit-learn's digits, on a CPU. Start it again to continue it.
set -euo pipefail
# shellcheck source=launch/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

environment
g2sd chain --config=chains/digits --workdir=runs/digits "$@"
echo "the whole report: $PWD/runs/digits/report.md"
