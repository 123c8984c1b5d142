#!/bin/sh
# An MTU below 1280, which IPv6 needs, is accepted, and takes IPv6 off the link entirely, rather than out of use:
# - its IPv6 addresses, routes and neighbours are deleted, permanent ones too, with events. IPv6 addresses cannot be
#   added (EINVAL);
# - its directory below /proc/sys/net/ipv6/conf is gone.
# The old MTU brings IPv6 back as on a new link: a link-local address, and conf from `default`. So what an administrator
# had set there is undone, disable_ipv6 = 1 among it: a link without IPv6 has IPv6 after it had MTU 1200 for a moment.
# Of the conf RTM_DELNETCONF and RTM_NEWNETCONF tell, without disable_ipv6. An MTU below 68, the minimum of IPv4, is
# refused.
# Seen with iproute2 6.1.0 on Linux 6.18. Needs root (for a network namespace) and ip(8).
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/mtu.sh" <<'SHELL'
set -eu
expect() { # TITLE SEEN EXPECTED
  echo "$1: $2"
  [ "$2" = "$3" ] || { echo "changed, expected: $3" >&2; exit 1; }
}
# Without the entries of the link-local address.
addresses() { ip -o -6 addr show dev va | awk '{ print $4 }' | grep -v fe80 | xargs; }
routes() { ip -6 route show dev va | awk '{ print $1 }' | grep -v fe80 | xargs; }
neighbours() { ip -6 neigh show dev va nud permanent | awk '{ print $1 }' | xargs; }
conf=/proc/sys/net/ipv6/conf
ip link add va type veth peer name vb
ip link set va up
ip link set vb up
ip addr add 2001:db8::1/64 dev va nodad
ip -6 route add 2001:db8:1::/48 via 2001:db8::9
ip -6 neigh add 2001:db8::9 lladdr 02:00:00:00:00:09 dev va
echo 55 >$conf/va/hop_limit
echo 1 >$conf/vb/disable_ipv6
expect "addresses" "$(addresses)" "2001:db8::1/64"
expect "routes" "$(routes)" "2001:db8::/64 2001:db8:1::/48"
expect "neighbours" "$(neighbours)" "2001:db8::9"
expect "IPv6 addresses of vb" "$(ip -o -6 addr show dev vb | wc -l)" 0

ip link set va mtu 1279
ip link set vb mtu 1279
expect "MTU 1279, addresses, routes, neighbours" "$(addresses)$(routes)$(neighbours)" ""
expect "conf" "$(ls $conf | xargs)" "all default lo"
expect "ip addr add" "$(ip addr add 2001:db8::1/64 dev va 2>&1)" "RTNETLINK answers: Invalid argument"
ip link set va mtu 1500
ip link set vb mtu 1500
expect "MTU 1500, addresses, routes, neighbours" "$(addresses)$(routes)$(neighbours)" ""
expect "conf" "$(ls $conf | xargs)" "all default lo va vb"
expect "hop_limit of va" "$(cat $conf/va/hop_limit)" "${EXPECTED:-$(cat $conf/default/hop_limit)}"
expect "disable_ipv6 of vb" "$(cat $conf/vb/disable_ipv6)" 0
until [ "$(ip -o -6 addr show dev vb | wc -l)" = 1 ]; do sleep 0.05; done
expect "IPv6 addresses of vb" "$(ip -o -6 addr show dev vb | grep -c fe80)" 1
expect "MTU 67" "$(ip link set va mtu 67 2>&1)" "Error: mtu less than device minimum."
SHELL
ip -V
uname -sr
timeout 50 unshare --net sh "$folder/mtu.sh"
