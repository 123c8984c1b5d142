#!/bin/sh
# `ip -all netns exec COMMAND` is exit status 0 whatever the commands were: also if all of them failed, or the program
# does not exist. `ip netns exec NAME COMMAND` has the exit status of the command, and 1 where a shell has 127, for a
# program that does not exist. So `ip -all netns exec nft -f rules || exit 1` goes on with no rules anywhere.
# The name of each namespace is printed between empty lines on standard output, in the midst of what the commands print:
# with -json as well, so a JSON parser fails. Nothing tells which namespace failed. ip-netns(8) has no word of it.
# Seen with iproute2 6.1.0 on Linux 6.18. Needs root and ip(8). /run is a tmpfs of its own meanwhile.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/all.sh" <<'SHELL'
set -u
mount -t tmpfs none /run
ip netns add one
ip netns add two
status() { # EXPECTED COMMAND
  expected=$1
  shift
  "$@" >"$folder/out" 2>&1
  seen=$?
  echo "$*: $seen"
  [ "$seen" = "$expected" ] || { echo "changed, expected: $expected" >&2; exit 1; }
}
status 7 ip netns exec one sh -c 'exit 7'
status ${EXPECTED:-0} ip -all netns exec sh -c 'exit 7'
status 1 ip netns exec one no-such-program
status 0 ip -all netns exec no-such-program
status 0 ip -all -json netns exec sh -c 'echo "[]"; exit 1'
cat "$folder/out"
sort "$folder/out" | grep . | xargs >"$folder/lines"
[ "$(cat "$folder/lines")" = "[] [] netns: one netns: two" ] || { echo "changed" >&2; exit 1; }
ip -all netns delete
SHELL
ip -V
uname -sr
export folder
unshare --mount sh "$folder/all.sh"
