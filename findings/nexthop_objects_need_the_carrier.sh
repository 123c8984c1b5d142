#!/bin/sh
# A route with a nexthop object (ip nexthop add id 5 via ..., ip route add ... nhid 5) is not the same as the route that
# was written out. Seen on Linux 6.18, IPv4 and IPv6:
#                                the route written out          the route with an object
#   the link loses its carrier   stays, with linkdown           the object is deleted, and each route that uses it
#   the carrier comes back       works again                    both stay deleted
#   the address that made the    IPv4: goes with it             object and route stay, and the lookup finds the gateway,
#   gateway reachable goes                                      which has no route itself
# Of these deletions only that of the IPv6 route is an event, RTM_DELROUTE. The IPv4 route and the objects go without
# one, although RTNLGRP_NEXTHOP has RTM_DELNEXTHOP for `ip nexthop del`. ip-nexthop(8) mentions none of this.
# Needs root (for a network namespace), and ip(8); seen with iproute2 6.1.0.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/carrier.sh" <<'SHELL'
set -eu
expect() { # TITLE SEEN EXPECTED
  echo "$1: $2"
  [ "$2" = "$3" ] || { echo "changed, expected: $3" >&2; exit 1; }
}
nexthops() { ip nexthop show | awk '{ print $2 }' | xargs; }
routes() { # With * if linkdown.
  { ip -4 route show; ip -6 route show; } | awk '/^(203|198|2001:db8:[12])/ { print $1 (/linkdown/ ? "*" : "") }' | sort | xargs
}
# What was told until now of routes and nexthops. The event of an address is behind all of it.
mark=1
expect_told() { # EXPECTED
  mark=$((mark + 1))
  ip addr add 127.0.0.$mark/32 dev lo
  until grep -q "inet 127.0.0.$mark/32" "$folder/told"; do sleep 0.05; done
  seen=$(grep -E '^(Deleted )?(id |203|198|2001:db8:[12])' "$folder/told" | cut -d' ' -f1-3 | xargs || :)
  : >"$folder/told"
  expect told "$seen" "$1"
}

folder=$1
ip link set lo up
ip link add va type veth peer name vb
ip link set va up
ip link set vb up
ip addr add 192.0.2.1/24 dev va
ip addr add 2001:db8::1/64 dev va nodad
until ip link show va | grep -q 'state UP'; do sleep 0.05; done
ip nexthop add id 4 via 192.0.2.9 dev va
ip nexthop add id 6 via 2001:db8::9 dev va
ip route add 203.0.113.0/24 nhid 4
ip route add 198.51.100.0/24 via 192.0.2.9
ip route add 2001:db8:1::/48 nhid 6
ip route add 2001:db8:2::/48 via 2001:db8::9
stdbuf -oL ip monitor route nexthop address >>"$folder/told" 2>"$folder/errors" &
monitor=$!
trap 'kill "$monitor"' EXIT
# The monitor has joined its groups.
until awk -v pid="$monitor" '$2 == 0 && $3 == pid && $4 != "00000000" { found = 1 } END { exit !found }' /proc/net/netlink; do
  sleep 0.05
done

all="198.51.100.0/24 2001:db8:1::/48 2001:db8:2::/48 203.0.113.0/24"
expect "nexthops" "$(nexthops)" "4 6"
expect "routes" "$(routes)" "$all"
ip link set vb down
until ip link show va | grep -q NO-CARRIER && ip route show | grep -q linkdown; do sleep 0.05; done
expect "no carrier, nexthops" "$(nexthops)" "${EXPECTED:-}"
expect "no carrier, routes" "$(routes)" "198.51.100.0/24* 2001:db8:2::/48*"
expect_told "Deleted 2001:db8:1::/48 nhid"
ip link set vb up
until ip link show va | grep -q 'state UP' && ! ip route show | grep -q linkdown; do sleep 0.05; done
expect "carrier again, nexthops" "$(nexthops)" ""
expect "carrier again, routes" "$(routes)" "198.51.100.0/24 2001:db8:2::/48"
expect_told ""

ip nexthop add id 4 via 192.0.2.9 dev va
ip route add 203.0.113.0/24 nhid 4
expect_told "id 4 via 203.0.113.0/24 nhid 4"
ip addr del 192.0.2.1/24 dev va
expect "no address, nexthops" "$(nexthops)" "4"
expect "no address, routes" "$(routes)" "2001:db8:2::/48 203.0.113.0/24"
expect_told ""
ip addr add 198.18.0.1/32 dev lo
expect "a lookup" "$(ip route get 203.0.113.7 | head -n 1 | cut -d' ' -f1-5)" "203.0.113.7 via 192.0.2.9 dev va"
expect "a lookup of its gateway" "$(ip route get 192.0.2.9 2>&1)" "RTNETLINK answers: Network is unreachable"
ip nexthop del id 4
expect "deleted, nexthops" "$(nexthops)" ""
expect_told "Deleted id 4"
SHELL
ip -V
uname -sr
timeout 50 unshare --net sh "$folder/carrier.sh" "$folder"
