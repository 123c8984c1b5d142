#!/bin/sh
# What a link keeps when it is moved to another network namespace (ip link set DEV netns NAME), and when it comes back:
#   keeps   MAC address, MTU, txqueuelen, group, alias, alternative names, offloads, gso_max_size, promisc on, number
#           (unless it is taken there); links on top of it (macvlan) stay with it, across the namespaces
#   loses   IFF_UP, addresses, routes, neighbours, bridge; qdiscs and filters; all of net.ipv4.conf.DEV and
#           net.ipv6.conf.DEV, which are the defaults of the other namespace
# No qdisc and no filter is told of as deleted, in either namespace; of an ingress qdisc a chain is. So a link that
# comes back, as the physical one of a container that ends, has neither its rate limit nor its conf. ip-link(8) says
# only "move the device to the network namespace".
# Seen with iproute2 6.1.0 and ethtool 6.1 on Linux 6.18. Needs root, ip(8), tc(8) and ethtool(8). /run is a tmpfs of
# its own meanwhile.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/move.sh" <<'SHELL'
set -eu
expect() { # TITLE SEEN EXPECTED
  echo "$1: $2"
  [ "$2" = "$3" ] || { echo "changed, expected: $3" >&2; exit 1; }
}
kept() {
  ip $1 -d link show va | grep -oE 'mtu [0-9]+|qlen [0-9]+|group [a-z0-9]+|ether [0-9a-f:]+|alias .*|altname .*|gso_max_size [0-9]+|PROMISC' | xargs
  $2 ethtool -k va | grep tcp-segmentation-offload
}
lost() {
  ip $1 link show va | grep -oE '[<,]UP' || echo "not UP"
  ip $1 addr show dev va | grep -cE 'inet ' || :
  tc $1 qdisc show dev va | cut -d' ' -f2 | xargs
  tc $1 filter show dev va ingress | grep -c match || :
  for conf in ipv4/conf/DEV/arp_ignore ipv6/conf/DEV/hop_limit; do
    own=$($2 cat "/proc/sys/net/$(echo $conf | sed s/DEV/va/)")
    [ "$own" = "$($2 cat "/proc/sys/net/$(echo $conf | sed s/DEV/default/)")" ] && echo default || echo own
  done
}
enter="ip netns exec other"
mount -t tmpfs none /run
ip netns add other
ip netns add peers
ip link set lo up
ip link add va address 02:00:00:00:00:01 type veth peer name vb netns peers
ip link add mv link va type macvlan
ip link set va alias uplink mtu 1400 txqueuelen 77 group 7 gso_max_size 30000 promisc on up
ip link property add dev va altname wan0
ethtool -K va tso off
ip addr add 192.0.2.1/24 dev va
tc qdisc add dev va root tbf rate 1mbit burst 10k latency 1ms
tc qdisc add dev va ingress
tc filter add dev va ingress u32 match u32 0 0
echo 2 >/proc/sys/net/ipv4/conf/va/arp_ignore
echo 55 >/proc/sys/net/ipv6/conf/va/hop_limit
kept "" "" >"$1/kept"
lost "" "" >"$1/lost"
cat "$1/kept"
expect "up, addresses, qdiscs, filters, conf" "$(xargs <"$1/lost")" ",UP 1 tbf ingress 1 own own"
stdbuf -oL tc monitor >"$1/told" 2>&1 &
first=$!
stdbuf -oL tc -n other monitor >"$1/told_there" 2>&1 &
second=$!
trap 'kill "$first" "$second"' EXIT
joined() { [ "$($1 awk '$2 == 0 && $4 != "00000000"' /proc/net/netlink | wc -l)" = 1 ]; }
until joined "" && joined "$enter"; do sleep 0.05; done
nothing="not UP 0 0 default default"
ip link set va netns other
expect "moved, kept" "$(kept "-n other" "$enter" | xargs)" "$(xargs <"$1/kept")"
expect "moved, up, addresses, qdiscs, filters, conf" "$(lost "-n other" "$enter" | xargs)" "${EXPECTED:-$nothing}"
expect "the macvlan" "$(ip link show mv | grep -oE 'mv@[a-z0-9]*|link-netns [a-z]*' | xargs)" "mv@if2 link-netns other"
ip -n other link set va netns $$
expect "back, kept" "$(kept "" "" | xargs)" "$(xargs <"$1/kept")"
expect "back, up, addresses, qdiscs, filters, conf" "$(lost "" "" | xargs)" "$nothing"
# These events are behind those of the moves.
tc qdisc add dev mv root tbf rate 1mbit burst 10k latency 1ms
tc -n other qdisc add dev lo root tbf rate 1mbit burst 10k latency 1ms
until grep -q 'tbf.*dev mv' "$1/told" && grep -q 'tbf.*dev lo' "$1/told_there"; do sleep 0.05; done
expect "told of qdiscs and filters" "$(grep -hv tbf "$1/told" "$1/told_there" | xargs)" "deleted chain dev va parent ffff: chain 0"
SHELL
uname -sr
timeout 50 unshare --mount --net sh "$folder/move.sh" "$folder"
