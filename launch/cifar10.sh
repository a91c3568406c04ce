#!/usr/bin/env bash
# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
# Distillation on CIFAR-10 beside its controls, on one GPU in a few minutes:
#
#   bash launch/cifar10.sh 'DIR/cifar10_{split}.tar.gz' runs/cifar10 [--minutes=7] …
#
# The tars hold train/CLASS/*.jpg and test/CLASS/*.jpg. Further words go to
# launch/side_by_side.py. WORKDIR/rows.jsonl grows by a line with every step that is done.
set -euo pipefail
pictures=$(realpath -s "$1") workdir=$(realpath -m "$2")
shift 2
# shellcheck source=launch/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
chain=${CHAIN:-chains/cifar10_controls}
# VENV=none takes the Python in PATH as it is, with what is installed there.
[ "${VENV:-}" = none ] || case $chain in *cpu*) environment ;; *) environment cuda ;; esac

# Compiling: library products as they are. To time candidates of each would take longer
# than the runs, and would be disturbed by the runs beside it.
export XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
export XLA_PYTHON_CLIENT_PREALLOCATE=false
export OMP_NUM_THREADS=2 OPENBLAS_NUM_THREADS=2

mkdir -p "$workdir"
[ -e "$workdir/data/test.npz" ] || python launch/npz_splits.py --path="$pictures" \
  --out="$workdir/data" --size=32 --classes=10 --subsets=tenth=5000,hundredth=500
exec python launch/side_by_side.py \
  "--config=$chain:path=$workdir/data/{split}.npz" \
  "--workdir=$workdir" "$@"
