#!/bin/sh
# nft(8) `add` is idempotent, but not for those who listen. An `add` of what is there already, with the same properties,
# is an event and a new generation of the rule set for some objects, and neither for others:
#   an event, a generation: chain, base chain, set, map, quota
#   neither:                table, element of a set or map, counter; flush of an empty chain
# So the generation also counts transactions that changed nothing, a monitor must take NFT_MSG_NEWCHAIN, NEWSET and
# NEWOBJ for "is there" and not for "is new", and two kinds of stateful objects differ in it.
# Seen with nftables 1.0.6 on Linux 6.18. Needs root (for a network namespace) and nft(8).
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/twice.sh" <<'SHELL'
told="$1/told"
mark=0
events() {
  # The events between the tables of the last two marks, which follow all that was done between them.
  sed -n "/^add table ip mark$((mark - 1))\$/,/^add table ip mark$mark\$/p" "$told" | grep -v '^add table ip mark'
}
mark() {
  mark=$((mark + 1))
  nft add table ip "mark$mark"
}
expect() { # EVENTS COMMAND...
  number=$1
  shift
  nft "$*"
  mark
  until grep -q "^add table ip mark$mark\$" "$told"; do :; done
  # The generation of the first mark is between the two as well.
  seen="$(events | grep -cv generation) $(($(events | grep -c generation) - 1))"
  echo "$*: events and generations $seen"
  [ "$seen" = "$number $number" ] || { echo "changed: expected $number $number" >&2; kill "$monitor"; exit 1; }
}

stdbuf -oL nft monitor >"$told" &
monitor=$!
until grep -qs '^add table ip mark' "$told"; do mark; done
for wanted in 1 "${EXPECTED:-0}"; do
  expect "$wanted" add table ip t
  expect 1 add chain ip t c
  expect 1 add chain ip t b '{ type filter hook input priority 0; policy accept; }'
  expect 1 add set ip t s '{ type ipv4_addr; }'
  expect "$wanted" add element ip t s '{ 192.0.2.1 }'
  expect 1 add map ip t m '{ type ipv4_addr : verdict; }'
  expect "$wanted" add element ip t m '{ 192.0.2.1 : accept }'
  expect "$wanted" add counter ip t n
  expect 1 add quota ip t q over 5 mbytes
done
expect 0 flush chain ip t c
kill "$monitor"
SHELL
nft --version
uname -sr
unshare --net sh "$folder/twice.sh" "$folder"
