#!/bin/sh
# runtime.sh: runc(8), for an engine that takes it by `--runtime`. Called by another name, docker-like.sh, it gives a process
# of an ordinary user no capabilities but the bounding set, as Docker does; podman gives it those of --cap-add, the ambient
# set included.
#
# Limits stay as they are: setting them takes CAP_SYS_RESOURCE, which not every machine's root has.
set -eu
bundle=
previous=
command=
for argument in "$@"; do
  case $previous in --bundle | -b) bundle=$argument ;; esac
  case $argument in create | run) command=$argument ;; esac
  previous=$argument
done
if [ -n "$command" ]; then
  filter='del(.process.rlimits)'
  case $0 in
    *docker-like*) filter="$filter | if .process.user.uid == 0 then del(.process.capabilities.ambient) else
      .process.capabilities |= {bounding} end" ;;
  esac
  jq "$filter" "${bundle:-.}/config.json" >"${bundle:-.}/config.json.new"
  mv "${bundle:-.}/config.json.new" "${bundle:-.}/config.json"
fi
exec runc "$@"
