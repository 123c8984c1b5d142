#!/bin/sh
# A change of a link that the kernel refuses (RTM_SETLINK, or RTM_NEWLINK for a link that is there) may have been made
# in part. The kernel carries out the attributes in an order of its own, stops at the first that fails, and takes
# nothing back; the members of RTNLGRP_LINK are told. The move to another namespace is the first of all, before the MTU
# and the name. So after an error
# - the link can be in the other namespace, without its addresses: only a later attribute was refused;
# - the MTU is new if the master was refused.
# Whoever gets an error has to look for the link, in both namespaces. A link that is created with an attribute that
# fails, by contrast, is not there afterwards.
# Seen on Linux 6.18 with iproute2 6.1.0. Needs root and ip(8). It uses its own namespaces.
set -eu
own="find-$$-own"
other="find-$$-other"
told=$(mktemp)
ip netns add "$own"
ip netns add "$other"
stdbuf -oL ip -n "$own" monitor link >"$told" &
monitor=$!
trap 'kill "$monitor"; ip netns del "$own"; ip netns del "$other"; rm "$told"' EXIT
listening='$2 == 0 && $4 != "00000000" { found = 1 } END { exit !found }'
until ip netns exec "$own" awk "$listening" /proc/net/netlink; do :; done
uname -sr
ip -V

expect() { # TITLE SEEN EXPECTED
  echo "$1: $2"
  [ "$2" = "$3" ] || { echo "changed, expected: $3" >&2; exit 1; }
}
refused() { ip -n "$own" "$@" 2>&1 || true; }
# Each link of a namespace but lo, with its MTU.
links() { ip -n "$1" -o link show type veth | sed -E 's/^[0-9]+: ([^@:]*).* mtu ([0-9]+) .*/\1 \2/' | sort | tr '\n' ' '; }

ip -n "$own" link add va type veth peer name vb
ip -n "$own" addr add 192.0.2.1/24 dev va
expect "a new MTU, and a master that is no bridge" "$(refused link set va mtu 1400 master vb)" \
  "RTNETLINK answers: Operation not supported"
expect "links" "$(links "$own")" "va ${EXPECTED:-1400} vb 1500 "
expect "a move, a new name, an MTU beyond the maximum" "$(refused link set va mtu 70000 name vc netns "$other")" \
  "Error: mtu greater than device maximum."
expect "links" "$(links "$own")" "vb 1500 "
expect "links there" "$(links "$other")" "va 1400 "
expect "addresses there" "$(ip -n "$other" -o -4 addr show dev va)" ""
expect "a new link with that MTU" "$(refused link add vx mtu 70000 type veth peer name vy)" \
  "RTNETLINK answers: Invalid argument"
expect "links" "$(links "$own")" "vb 1500 "
# The monitor reads on while this waits.
timeout 20 sh -c 'until grep -q "Deleted.*va" "$1"; do :; done' sh "$told" ||
  { echo "changed: no RTM_DELLINK" >&2; exit 1; }
expect "told: the MTU" "$(grep -v Deleted "$told" | grep -o 'va.* mtu 1400' | grep -o 'mtu 1400' | head -1)" "mtu 1400"
expect "told: the move" "$(grep -o 'Deleted.* va' "$told" | grep -o ^Deleted | head -1)" "Deleted"
