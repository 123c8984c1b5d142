#!/bin/sh
# Seen on Linux 6.18, with net.netfilter.nf_conntrack_events 2, the default since Linux 5.19. When a flow begins,
# the kernel decides whether the flow will ever have events: only if a socket in *any* namespace of the machine is a
# member of a conntrack group. So the event at the end of a flow that began before its namespace had a listener
# depends on unrelated containers.
#
# Needs root, nftables and conntrack(8). It uses its own namespaces. No other process of the machine may listen
# meanwhile.
set -eu

one="find-$$-1"
other="find-$$-2"
told=$(mktemp)
ip netns add "$one"
ip netns add "$other"
trap 'ip netns del "$one"; ip netns del "$other"; rm "$told"' EXIT
in_one() { ip netns exec "$one" "$@"; }

ip -n "$one" link set lo up
in_one nft 'add table ip t; add chain ip t c { type filter hook output priority 0; }; add rule ip t c ct state new accept'
in_one sh -c 'echo 2 >/proc/sys/net/netfilter/nf_conntrack_events'

# The number of end events of a flow that begins before its namespace has a listener.
ends() {
  in_one bash -c 'echo >/dev/udp/127.0.0.1/4001'
  stdbuf -oL ip netns exec "$one" conntrack -E >"$told" 2>/dev/null &
  listener=$!
  # A flow that begins when a listener is there has both events.
  until grep -q 'NEW.*dport=4002' "$told"; do
    in_one conntrack -D -p udp --dport 4002 >/dev/null 2>&1 || true
    in_one bash -c 'echo >/dev/udp/127.0.0.1/4002'
  done
  in_one conntrack -D -p udp --dport 4001 >/dev/null 2>&1
  in_one conntrack -D -p udp --dport 4002 >/dev/null 2>&1
  until grep -q 'DESTROY.*dport=4002' "$told"; do :; done
  kill "$listener"
  grep -c 'DESTROY.*dport=4001' "$told" || true
}

expect() {
  [ "$2" = "$3" ] || { echo "changed: $1: expected $3, got $2" >&2; exit 1; }
  echo "as seen: $1: $2"
}

expect "ends told of an older flow" "$(ends)" "${EXPECTED:-0}"
ip netns exec "$other" conntrack -E >/dev/null 2>&1 &
listener=$!
until ip netns exec "$other" awk '$2 == 12 && $4 != "00000000" { found = 1 } END { exit !found }' /proc/net/netlink; do :; done
expect "the same, with a listener in another namespace" "$(ends)" 1
kill "$listener"
echo "kernel $(uname -r)"
