#!/bin/sh
# What was seen on Linux 6.18 (iproute2 6.1): when an interface loses its carrier, with nobody setting it
# down, the kernel deletes the nexthop objects (ip-nexthop(8)) on it and with them the IPv4 routes that use
# them. It tells neither, not even in RTNLGRP_NEXTHOP; nothing brings them back with the carrier. Of an IPv6
# route with such an object there is an RTM_DELROUTE.
#
# Root. It uses ip(8) alone, in a namespace of its own.
set -eu

name="find-$$"
folder=$(mktemp -d)
ip netns add "$name"
trap 'ip netns del "$name"; rm -r "$folder"' EXIT
in_it() { ip -n "$name" "$@"; }

in_it link add va type veth peer name pa
in_it link set va up
in_it link set pa up
in_it addr add 10.0.0.1/24 dev va
in_it addr add fd00::1/64 dev va nodad
in_it nexthop add id 1 via 10.0.0.2 dev va
in_it nexthop add id 2 via fd00::2 dev va
in_it route add 10.9.0.0/24 nhid 1
in_it -6 route add fd09::/64 nhid 2

expect() {
  [ "$2" = "$3" ] || { echo "changed: $1: expected $3, got $2" >&2; exit 1; }
  echo "as seen: $1: $2"
}

# Told from the start to the end of a link that is made for that alone.
stdbuf -oL ip -n "$name" monitor link route nexthop >"$folder/told" &
monitor=$!
until grep -q begin "$folder/told"; do
  in_it link add begin type bridge 2>/dev/null || in_it link del begin
done
in_it link set pa down
until in_it -o link show va | grep -q NO-CARRIER; do :; done
in_it link add end type bridge
until grep -q end "$folder/told"; do :; done
kill "$monitor"

expect "nexthop objects left" "$(in_it nexthop | grep -c . || true)" "${EXPECTED:-0}"
expect "IPv4 routes with one" "$(in_it route | grep -c nhid || true)" 0
expect "deletions told of nexthops" "$(grep -c '^Deleted id' "$folder/told" || true)" 0
expect "deletions told of the IPv4 route" "$(grep -c '^Deleted 10.9' "$folder/told" || true)" 0
expect "deletions told of the IPv6 route" "$(grep -c '^Deleted fd09' "$folder/told" || true)" 1
echo "kernel $(uname -r), $(ip -V)"
