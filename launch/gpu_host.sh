#!/usr/bin/env bash
# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
# Trains on the GPUs of one host, starting again after an interruption:
#
#   bash launch/gpu_host.sh -- --config=generic_distill:student=s16 --workdir=runs/gd_s \
#     --config.teacher.checkpoint=runs/mae_b
#
# One process drives all GPUs, which is what one host should do. --per-gpu starts one
# process per GPU instead: what a run over several hosts does, tried out on one.
# What follows -- goes to g2sd train.
set -euo pipefail
# shellcheck source=launch/options.sh
source "$(dirname "${BASH_SOURCE[0]}")/options.sh"

gpus="" per_gpu="" memory="" deterministic="" dry_run="" rest=()
port=${G2SD_PORT:-12321}

usage() {
  sed -n '4,11s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
  cat <<'TEXT'

  --gpus=0,2        which GPUs (default: CUDA_VISIBLE_DEVICES, else all of them)
  --per-gpu         one process per GPU
  --memory=0.9      share of a GPU's memory that JAX takes at once, at its start
                    (its own default is 0.75); 0 takes it bit by bit, which lets
                    others use the GPU and leaves holes that may not be filled again
  --deterministic   the same bits every time: XLA then refuses the faster forms of
                    scatter and of some reductions, which add in any order
  --dry-run         print what would be run
TEXT
}

options "gpus memory" "per-gpu deterministic dry-run" "$@"
set -- ${rest[@]+"${rest[@]}"}
[ $# -gt 0 ] || fail "what to train is missing: … -- --config=RECIPE --workdir=DIR"

settings=()
case $memory in
  "") ;;
  0) settings+=(XLA_PYTHON_CLIENT_PREALLOCATE=false) ;;
  0.* | 1 | 1.0) settings+=(XLA_PYTHON_CLIENT_MEM_FRACTION="$memory") ;;
  *) fail "--memory=$memory is a share of the GPU's memory, 0 to 1" ;;
esac
if [ -n "$deterministic" ]; then
  settings+=(XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_deterministic_ops=true")
fi
gpus=${gpus:-${CUDA_VISIBLE_DEVICES:-}}
if [ -z "$gpus" ]; then
  gpus=$(nvidia-smi --query-gpu=index --format=csv,noheader | paste -sd, -) ||
    fail "no GPU was found: nvidia-smi failed; name them with --gpus=0,1"
fi
IFS=, read -r -a listed <<<"$gpus"

children=() asked=""
# A signal goes on to the processes, which save and leave.
stop() {
  asked=1
  if [ ${#children[@]} -gt 0 ]; then kill -TERM "${children[@]}" 2>/dev/null || true; fi
}
trap stop TERM INT

# begin NAME=VALUE… COMMAND…
begin() {
  tell "$@" >&2
  if [ -z "$dry_run" ]; then env "$@" & children+=($!); fi
}

# outcome: waits for every process; the status that says most. 75 means: start again.
outcome() {
  local child code worst=0
  for child in ${children[@]+"${children[@]}"}; do
    while true; do
      code=0
      wait "$child" || code=$?
      kill -0 "$child" 2>/dev/null || break # else a signal ended the wait, not the child
    done
    if [ "$code" -ne 0 ] && { [ "$worst" -eq 0 ] || [ "$worst" -eq 75 ]; }; then
      worst=$code
    fi
  done
  return "$worst"
}

while true; do
  children=()
  if [ -n "$per_gpu" ]; then
    for index in "${!listed[@]}"; do
      begin ${settings[@]+"${settings[@]}"} CUDA_VISIBLE_DEVICES="${listed[$index]}" \
        g2sd train "$@" --coordinator="localhost:$port" \
        --processes="${#listed[@]}" --process="$index"
    done
  else
    begin ${settings[@]+"${settings[@]}"} CUDA_VISIBLE_DEVICES="$gpus" g2sd train "$@"
  fi
  status=0
  outcome || status=$?
  if [ "$status" -ne 75 ] || [ -n "$asked" ]; then exit "$status"; fi
  echo "asked to stop and saved: starting again" >&2
done
