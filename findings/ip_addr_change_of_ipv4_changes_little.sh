#!/bin/sh
# `ip addr change` (and replace: RTM_NEWADDR with NLM_F_REPLACE) of an IPv4 address that is there succeeds, and is told
# as RTM_NEWADDR, whatever it asks for. Of what it asks for the kernel takes the lifetimes and the metric:
#                            IPv4                                 IPv6
#   broadcast, label, scope  stay as they were                    -
#   noprefixroute            stays as it was                      changed, the route of the prefix too
#   peer                     stays, or one more address           changed
#   no metric is named       the metric goes, and the route is    stays as it was
#                            made anew without it
#   no lifetime is named     becomes "forever"                    becomes "forever"
# So a program that "makes sure" of a label or a broadcast address is told that it has, and one that renews a lifetime,
# as a script of a DHCP client does, can change the link by which the network is reached.
# Seen with iproute2 6.1.0 on Linux 6.18. Needs root (for a network namespace) and ip(8).
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/change.sh" <<'SHELL'
set -eu
expect() { # TITLE SEEN EXPECTED
  echo "$1: $2"
  [ "$2" = "$3" ] || { echo "changed, expected: $3" >&2; exit 1; }
}
address() { ip -o $1 addr show dev va scope global | sed -E 's/^[0-9]+: va +inet6? //; s/\\ +/ /; s/[0-9]+sec/finite/g; s/ +/ /g'; }
route() { ip $1 route show dev va | grep -E '^(192|2001)' | sed 's/ src.*[0-9.] metric/ metric/; s/ *$//' || :; }
ip link set lo up
ip link add va type veth peer name vb
ip link set va up
ip link set vb up
forever="valid_lft forever preferred_lft forever"
finite="valid_lft finite preferred_lft finite"
ip addr add 192.0.2.1/24 dev va
for asked in "brd 192.0.2.255" "label va:1" "scope link" noprefixroute; do
  ip addr change 192.0.2.1/24 $asked dev va
  expect "192.0.2.1/24 $asked" "$(address -4)" "${EXPECTED:-192.0.2.1/24 scope global va $forever}"
  expect "route" "$(route -4)" "192.0.2.0/24 proto kernel scope link src 192.0.2.1"
done
ip addr change 192.0.2.1 peer 192.0.2.7/24 dev va
expect "192.0.2.1 peer 192.0.2.7/24" "$(address -4)" "192.0.2.1/24 scope global va $forever"
ip addr change 192.0.2.1/24 metric 55 dev va
expect "192.0.2.1/24 metric 55" "$(address -4)" "192.0.2.1/24 metric 55 scope global va $forever"
expect "route" "$(route -4)" "192.0.2.0/24 proto kernel scope link metric 55"
ip addr change 192.0.2.1/24 valid_lft 1000 preferred_lft 1000 dev va
expect "192.0.2.1/24 valid_lft 1000" "$(address -4)" "192.0.2.1/24 scope global dynamic va $finite"
expect "route" "$(route -4)" "192.0.2.0/24 proto kernel scope link src 192.0.2.1"
ip addr change 192.0.2.1/24 dev va
expect "192.0.2.1/24" "$(address -4)" "192.0.2.1/24 scope global va $forever"

ip addr add 2001:db8::1/64 dev va nodad
ip addr change 2001:db8::1/64 noprefixroute nodad dev va
expect "2001:db8::1/64 noprefixroute" "$(address -6)" "2001:db8::1/64 scope global nodad noprefixroute $forever"
expect "route" "$(route -6)" ""
ip addr change 2001:db8::1/64 metric 55 nodad dev va
expect "2001:db8::1/64 metric 55" "$(address -6)" "2001:db8::1/64 metric 55 scope global nodad $forever"
ip addr change 2001:db8::1/64 home nodad dev va
expect "2001:db8::1/64 home" "$(address -6)" "2001:db8::1/64 metric 55 scope global nodad home $forever"
expect "route" "$(route -6 | grep -o 'metric 55')" "metric 55"
ip addr change 2001:db8::1 peer 2001:db8::7/64 nodad dev va
expect "2001:db8::1 peer 2001:db8::7/64" "$(address -6)" "2001:db8::1 peer 2001:db8::7/64 metric 55 scope global nodad $forever"
SHELL
ip -V
uname -sr
timeout 50 unshare --net sh "$folder/change.sh"
