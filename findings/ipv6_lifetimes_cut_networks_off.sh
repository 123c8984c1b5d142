#!/bin/sh
# An IPv6 address that had no lifetime and is given one (ip addr change ... valid_lft 1000) makes its network
# unreachable at once. The kernel gives the lifetime to the route of the prefix, too, but as a time that is long past:
# `ip -6 route` lists "expires -17242418sec", and a lookup is ENETUNREACH.
# - The other addresses of the prefix lose their route with it, although they have no lifetime. It does not come back
#   when the changed address is deleted.
# - No error and no event tells of it: there is the RTM_NEWADDR of the change, and the address is as it was asked for.
# The next change of an address of the prefix mends the route. An address that has had a lifetime from the beginning can
# be given another.
# Seen with iproute2 6.1.0 on Linux 6.18. Needs root (for a network namespace) and ip(8).
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/lifetimes.sh" <<'SHELL'
set -eu
expect() { # TITLE SEEN EXPECTED
  echo "$1: $2"
  [ "$2" = "$3" ] || { echo "changed, expected: $3" >&2; exit 1; }
}
route() {
  case $(ip -6 route show 2001:db8::/64) in
    *"expires -"* | "") echo "in the past" ;; # The kernel removes what has expired after a while.
    *expires*) echo "in the future" ;;
    *) echo "no end" ;;
  esac
}
lookup() { ip -6 route get 2001:db8::9 2>&1 | sed -E 's/.* (src [^ ]*).*/\1/; s/.*answers: //'; }
ip link set lo up
ip link add va type veth peer name vb
ip link set va up
ip link set vb up
ip addr add 2001:db8::1/64 dev va nodad
ip addr add 2001:db8::2/64 dev va nodad
expect "no lifetime: route, lookup" "$(route), $(lookup)" "no end, src 2001:db8::2"
stdbuf -oL ip monitor route address >"$1/told" 2>&1 &
monitor=$!
trap 'kill "$monitor"' EXIT
until awk '$2 == 0 && $4 != "00000000" { found = 1 } END { exit !found }' /proc/net/netlink; do sleep 0.05; done
ip addr change 2001:db8::2/64 dev va nodad valid_lft 1000 preferred_lft 1000
expect "a lifetime for 2001:db8::2: route, lookup" "$(route), $(lookup)" "in the past, ${EXPECTED:-Network is unreachable}"
ip -6 route show 2001:db8::/64
expect "addresses" "$(ip -o -6 addr show dev va scope global | sed -E 's/.*inet6 ([^ ]*) .*valid_lft ([a-z0-9]*) .*/\1 \2/; s/999sec|1000sec/finite/' | sort | xargs)" \
  "2001:db8::1/64 forever 2001:db8::2/64 finite"
# This event is behind those of the change.
ip addr add 192.0.2.1/32 dev lo
until grep -q 192.0.2.1 "$1/told"; do sleep 0.05; done
expect "told of the route" "$(grep -c '2001:db8::/64' "$1/told" || :)" 0
ip addr del 2001:db8::2/64 dev va
expect "2001:db8::2 is deleted: route, lookup" "$(route), $(lookup)" "in the past, Network is unreachable"
ip addr change 2001:db8::1/64 dev va nodad
expect "a change without a lifetime: route, lookup" "$(route), $(lookup)" "no end, src 2001:db8::1"
for time in first second; do
  ip addr change 2001:db8::1/64 dev va nodad valid_lft 1000 preferred_lft 1000
  expect "the $time change with a lifetime: route, lookup" "$(route), $(lookup)" \
    "$([ $time = first ] && echo "in the past, Network is unreachable" || echo "in the future, src 2001:db8::1")"
done
ip addr del 2001:db8::1/64 dev va
ip addr add 2001:db8::1/64 dev va nodad valid_lft 1000 preferred_lft 1000
ip addr change 2001:db8::1/64 dev va nodad valid_lft 2000 preferred_lft 2000
expect "a lifetime from the beginning, and a change: route, lookup" "$(route), $(lookup)" "in the future, src 2001:db8::1"
SHELL
ip -V
uname -sr
timeout 50 unshare --net sh "$folder/lifetimes.sh" "$folder"
