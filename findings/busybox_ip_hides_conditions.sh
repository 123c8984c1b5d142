#!/bin/sh
# ip of BusyBox prints rules and routes in the form of iproute2, and leaves out what it does not know, without a mark.
# What is left reads as a rule or a route, and as another one:
# - a rule "not from 10.0.0.0/8" is listed as "from 10.0.0.0/8", its opposite. Protocol, ports and user ids of a rule are
#   left out, so a rule for the port 22 is listed as one for all. A rule "goto" is listed as "lookup unspec local";
# - the next hops of a multipath route, a gateway of the other family (via inet6), and metrics such as mtu are left out.
#   The first is a line without a gateway or a device, the second reads as a route on the link.
# So a script that reads `ip rule` or `ip route` sees other rules where ip is BusyBox's, as in Alpine or an initramfs,
# and adds them back wrong.
# Seen with BusyBox 1.35.0 and iproute2 6.1.0 on Linux 6.18. Needs root (for a network namespace), ip(8) and busybox.
set -eu
command -v busybox >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends busybox >/dev/null; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/list.sh" <<'SHELL'
set -eu
ip link add va type veth peer name vb
ip link set va up
ip link set vb up
ip addr add 192.0.2.1/24 dev va
ip rule add pref 1 not from 10.0.0.0/8 table 1000
ip rule add pref 2 ipproto tcp dport 22 table 1000
ip rule add pref 3 uidrange 0-5 table 1000
ip rule add pref 4 fwmark 5/7 goto 32766
ip route add 203.0.113.0/26 nexthop via 192.0.2.5 nexthop via 192.0.2.6
ip route add 203.0.113.64/26 via inet6 fe80::1 dev va
ip route add 203.0.113.128/26 via 192.0.2.5 mtu 1300
for ip in ip "busybox ip"; do
  echo "$ip"
  $ip rule | grep -E '^[1-4]:'
  $ip route | grep -vE '^192'
done | sed -E 's/[[:space:]]+/ /g; s/ $//'
SHELL
busybox | head -1
ip -V
uname -sr
seen=$(unshare --net sh "$folder/list.sh")
echo "$seen"
expected="ip
1: not from 10.0.0.0/8 lookup 1000
2: from all ipproto tcp dport 22 lookup 1000
3: from all uidrange 0-5 lookup 1000
4: from all fwmark 0x5/0x7 goto 32766
203.0.113.0/26
 nexthop via 192.0.2.5 dev va weight 1
 nexthop via 192.0.2.6 dev va weight 1
203.0.113.64/26 via inet6 fe80::1 dev va
203.0.113.128/26 via 192.0.2.5 dev va mtu 1300
busybox ip
1: ${EXPECTED:-from 10.0.0.0/8} lookup 1000
2: from all lookup 1000
3: from all lookup 1000
4: from all fwmark 0x5/0x7 lookup unspec local
203.0.113.0/26
203.0.113.64/26 dev va
203.0.113.128/26 via 192.0.2.5 dev va"
[ "$seen" = "$expected" ] || { echo "changed, expected:" >&2; echo "$expected" >&2; exit 1; }
