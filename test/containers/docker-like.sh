#!/bin/sh
# runtime.sh: runc(8), for an engine that takes it by `--runtime`. Called by another name, docker-like.sh, it gives a process
# of an ordinary user no capabilities but the bounding set, as Docker does; podman gives it those of --cap-add, the ambient
# set included.
#
# Limits stay as they are: setting them takes CAP_SYS_RESOURCE, which not every machine's root has.
set -eu
bundle=.
previous=
command=
for argument in "$@"; do
  case $previous in
    --bundle | -b) bundle=$argument ;;
    --process) process=$argument ;;
  esac
  case $argument in create | run | exec) command=$argument ;; esac
  previous=$argument
done

edit() { # FILE FILTER
  jq "$2" "$1" >"$1.new"
  mv "$1.new" "$1"
}
user='if .user.uid == 0 then del(.capabilities.ambient) else .capabilities |= {bounding} end'
case $command in
  create | run) file=$bundle/config.json in=.process ;;
  exec) file=${process:-} in=. ;;
  *) file= ;;
esac
if [ -n "$file" ]; then
  edit "$file" "$in |= del(.rlimits)"
  case $0 in *docker-like*) edit "$file" "$in |= ($user)" ;; esac
fi
exec runc "$@"
