# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Sourced by launchers, which have a `usage`: how they read a command line and speak.

fail() {
  echo "error: $*" >&2
  exit 2
}

# tell COMMAND…: prints it as it could be typed.
tell() {
  printf '+'
  printf ' %q' "$@"
  printf '\n'
}

# options VALUED FLAGS ARGUMENT…: sets the variable of each --name=value whose name is
# among the words of VALUED, and that of each --name among those of FLAGS to 1 (a - in
# it is _ then); `rest` is what follows --, if anything does.
options() {
  local valued=" $1 " flags=" $2 " word script=${0##*/}
  shift 2
  while [ $# -gt 0 ] && [ "$1" != -- ]; do
    word=${1%%=*} word=${word#--}
    if [ "$1" = --help ] || [ "$1" = -h ]; then
      usage
      exit
    elif [[ $1 == --*=* && $valued == *" $word "* ]]; then
      printf -v "${word//-/_}" %s "${1#*=}"
    elif [[ $1 == --* && $1 != *=* && $flags == *" $word "* ]]; then
      printf -v "${word//-/_}" 1
    else
      fail "$1 is not an argument of $script; what g2sd train takes follows --"
    fi
    shift
  done
  rest=("${@:2}")
}
