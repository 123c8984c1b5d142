#!/bin/sh
# Seen on Linux 6.18 (iproute2 6.1): a dump of IPv6 routes leaves out routes that are between the nexthops of a
# multipath route with the same destination and metric. These routes exist: they can be deleted, and are dumped
# again when the other route has a single nexthop. No event is sent when they vanish from the dump. So a table that
# is updated by events has more routes than a dump.
#
# Needs root and ip(8). It uses its own namespace.
set -eu

name="find-$$"
ip netns add "$name"
trap 'ip netns del "$name"' EXIT
in_it() { ip -n "$name" "$@"; }

for pair in "va pa" "vb pb"; do
  set -- $pair
  in_it link add "$1" type veth peer name "$2"
  in_it link set "$1" up
  in_it link set "$2" up
done
in_it addr add fd00::1/64 dev va nodad
in_it addr add fd01::1/64 dev vb nodad

count() { in_it -6 route show fd06::/64 | grep -c "^fd06::/64 $1" || true; }
expect() {
  [ "$2" = "$3" ] || { echo "changed: $1: expected $3, got $2" >&2; exit 1; }
  echo "as seen: $1: $2"
}

in_it -6 route add fd06::/64 via fd00::2 dev va
in_it -6 route append fd06::/64 dev vb
expect "routes without a gateway, beside one nexthop" "$(count 'dev vb')" 1

in_it -6 route append fd06::/64 via fd01::2 dev vb
expect "the same, between two nexthops" "$(count 'dev vb')" "${EXPECTED:-0}"

in_it -6 route del fd06::/64 via fd01::2 dev vb
expect "the same, after the second nexthop is deleted" "$(count 'dev vb')" 1
echo "kernel $(uname -r), $(ip -V)"
