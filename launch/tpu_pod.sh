#!/usr/bin/env bash
# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
# Trains on a Cloud TPU slice until it is done, whatever happens to the slice:
#
#   bash launch/tpu_pod.sh --name=g2sd --zone=us-west4-a --type=v5litepod-64 \
#     --runtime=v2-alpha-tpuv5-lite --spot --workdir=gs://bucket/gd_s -- \
#     --config=generic_distill:student=s16 --config.teacher.checkpoint=gs://bucket/mae_b
#
# It makes the slice (or takes the one of that name), installs this checkout on every
# worker, runs `g2sd train` on all of them, follows the log, makes the slice anew when it
# was preempted, and deletes it at the end. Stopped and started again, it goes on.
# What follows -- goes to g2sd train. --dry-run prints every command and runs none.
# shellcheck disable=SC2016  # What stands in single quotes is for the workers' shells.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/options.sh

name="" zone="" type="" runtime="" workdir="" project="" spot="" dry_run="" keep="" rest=()
restarts=50 retries=3 poll=${G2SD_POLL:-30}

usage() {
  sed -n '4,13s/^# \{0,1\}//p' launch/tpu_pod.sh
  cat <<'TEXT'

  --name=NAME        of the slice and of its queued resource
  --zone=ZONE        --project=PROJECT (default: gcloud's own)
  --type=TYPE        accelerator type: v4-32, v5litepod-64, v6e-16
  --runtime=VERSION  runtime version that goes with it
  --workdir=DIR      gs://… or a folder that all workers share
  --spot             cheaper, may be preempted at any time
  --restarts=N       slices after the first one (default 50)
  --retries=N        crashes in a row on a healthy slice before it gives up (default 3)
  --keep             leave the slice at the end
  --dry-run          print every command, run none
TEXT
}

options "name zone project type runtime workdir restarts retries" "spot keep dry-run" "$@"
set -- ${rest[@]+"${rest[@]}"}
for key in name zone type runtime workdir; do
  [ -n "${!key}" ] || fail "--$key=… is missing; see bash launch/tpu_pod.sh --help"
done
[ $# -gt 0 ] || fail "what to train is missing: … -- --config=RECIPE"

place=(--zone="$zone")
if [ -n "$project" ]; then place+=(--project="$project"); fi

# run COMMAND…: tells it on stderr and runs it, or only tells it.
run() {
  tell "$@" >&2
  if [ -z "$dry_run" ]; then "$@"; fi
}

# ask ASSUMED COMMAND…: the answer of a question; what is assumed in a dry run.
ask() {
  local assumed=$1
  shift
  if [ -n "$dry_run" ]; then tell "$@" >&2 && echo "$assumed" && return; fi
  "$@" 2>/dev/null || true
}

slice_state() {
  ask "$1" gcloud compute tpus tpu-vm describe "$name" "${place[@]}" '--format=value(state)'
}

queue_state() {
  ask ACTIVE gcloud compute tpus queued-resources describe "$name" "${place[@]}" \
    '--format=value(state.state)'
}

on() { # on WORKERS COMMAND
  run gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" --worker="$1" --command="$2"
}

delete() {
  run gcloud compute tpus queued-resources delete "$name" "${place[@]}" --force --quiet ||
    run gcloud compute tpus tpu-vm delete "$name" "${place[@]}" --quiet || true
}

create() {
  local state options=()
  if [ -n "$spot" ]; then options+=(--spot); fi
  run gcloud compute tpus queued-resources create "$name" --node-id="$name" \
    "${place[@]}" --accelerator-type="$type" --runtime-version="$runtime" \
    ${options[@]+"${options[@]}"}
  while true; do
    state=$(queue_state)
    case $state in
      ACTIVE) return ;;
      FAILED | SUSPENDED | SUSPENDING)
        echo "the request for $name is $state" >&2
        return 1
        ;;
    esac
    sleep "$poll"
  done
}

install() {
  local archive=/tmp/g2sd_jax.tar.gz
  run git archive --format=tar.gz --output="$archive" HEAD
  run gcloud compute tpus tpu-vm scp "$archive" "$name:" "${place[@]}" --worker=all
  # The images of the older generations come with Python 3.10.
  on all 'command -v python3.11 python3.12 python3.13 >/dev/null ||
    { sudo apt-get update && sudo apt-get install -y python3.11 python3.11-venv; }
    mkdir -p g2sd_jax && tar -xzf g2sd_jax.tar.gz -C g2sd_jax &&
    cd g2sd_jax && source launch/env.sh && environment tpu'
}

# The run outlives this script's connection; its exit status is kept in a file.
start() {
  local command
  command=$(printf ' %q' g2sd train --workdir="$workdir" "$@")
  on all "cd g2sd_jax && source launch/env.sh && environment tpu && cd &&
    rm -f g2sd.exit && { nohup bash -c '$(quoted "$command"); echo \$? > g2sd.exit' \
    > g2sd.log 2>&1 & echo \$! > g2sd.pid; }"
}

# quoted TEXT: as the inside of a single-quoted string.
quoted() {
  printf '%s' "$1" | sed "s/'/'\\\\''/g"
}

follow() {
  on 0 'tail --pid="$(cat g2sd.pid)" -n +1 -F g2sd.log' || true
  # The last words of every worker, for the one that failed may be another.
  on all 'for i in $(seq 30); do [ -s g2sd.exit ] && break; sleep 1; done; tail -n 3 g2sd.log' ||
    true
  codes=$(ask 0 gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" --worker=all \
    --command='echo "g2sd exit $(cat g2sd.exit)"' |
    sed -n 's/.*g2sd exit *//p' | sort -n | uniq | tr '\n' ' ')
}

is_done() {
  local path="$workdir/DONE"
  if [ -n "$dry_run" ]; then
    tell gcloud storage ls "$path" >&2
    [ -n "$trained" ]
  elif [[ $workdir == gs://* ]]; then
    gcloud storage ls "$path" >/dev/null 2>&1
  else
    gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" --worker=0 \
      --command="test -e $path" >/dev/null 2>&1
  fi
}

trained="" installed="" crashes=0 slices=0 codes=""
state=$(slice_state "")
until is_done; do
  if [ "$state" != READY ]; then
    [ "$slices" -le "$restarts" ] || fail "$slices slices were lost; raise --restarts"
    if [ -n "$(queue_state)" ] && [ -z "$dry_run" ]; then delete; fi
    slices=$((slices + 1)) installed=""
    if ! create; then
      state=LOST
      continue
    fi
  fi
  if [ -z "$installed" ]; then install && installed=1; fi
  start "$@" && follow
  trained=1
  state=$(slice_state READY)
  if [ "$state" != READY ]; then
    echo "slice $name is ${state:-gone}: making another" >&2
    continue
  fi
  case " $codes" in
    *" 2 "*)
      echo "a mistake that a restart does not mend; the slice stays for a look:" \
        "delete it with gcloud compute tpus queued-resources delete $name --force" >&2
      exit 2
      ;;
    " 0 ") crashes=0 ;;
    *" 75 "*) crashes=0 && echo "asked to stop and saved: starting again" >&2 ;;
    *)
      crashes=$((crashes + 1))
      echo "crashed with ${codes:-no status} ($crashes in a row)" >&2
      [ "$crashes" -lt "$retries" ] || exit 1
      ;;
  esac
  sleep "$((crashes * poll))"
done
echo "$workdir is done"
if [ -z "$keep" ]; then delete; fi
