#!/bin/sh
# runtime.sh: runs runc(8), for an engine that is given it by `--runtime`. podman gives a process of an ordinary
# user the capabilities of --cap-add, in the ambient set, too. Under the name docker-like.sh this script leaves such
# a process only the bounding set, as Docker does.
#
# It removes the limits of the container, since to set them takes CAP_SYS_RESOURCE, which root lacks on some machines.
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
