#!/bin/sh
# A vxlan(8) link that is moved to another network namespace sends its packets in the one where it was made, for ever.
# Container networks are built on that. What it means for the two namespaces, seen on Linux 6.18:
# - the UDP port of the tunnel belongs to the first: a program there cannot bind it (EADDRINUSE), and ss(8) lists it
#   there without a process. In the namespace of the link the port is free;
# - the link does not keep the first namespace, as a socket there would. When that ends, the link is deleted, although
#   it is in a namespace that goes on: RTM_DELLINK is the only trace;
# - so is a macvlan whose lower device was left behind.
# ip-link(8) says of netns: "move the device to the network namespace", and of none of this.
# Needs root (for network namespaces), python3, ip(8) and ss(8); seen with iproute2 6.1.0. /run is a tmpfs of its own
# meanwhile.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/tunnel.sh" <<'SHELL'
set -eu
expect() { # TITLE SEEN EXPECTED
  echo "$1: $2"
  [ "$2" = "$3" ] || { echo "changed, expected: $3" >&2; exit 1; }
}
links() { ip -n second -br link show | cut -d@ -f1 | cut -d' ' -f1 | sort | xargs; }
bind() {
  ip netns exec "$1" python3 -c '
import errno, socket
try:
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).bind(("", 4789))
    print("ok")
except OSError as error:
    print(errno.errorcode[error.errno])'
}
mount -t tmpfs none /run
ip netns add first
ip netns add second
ip -n first link add vx type vxlan id 5 dstport 4789 remote 192.0.2.2
ip -n first link add lower type veth peer name peer
ip -n first link add mv link lower type macvlan
ip -n first link set vx netns second
ip -n first link set mv netns second
ip -n second link set vx up
expect "links of the second namespace" "$(links)" "lo mv vx"
for name in first second; do
  expect "ss, $name" "$(ip netns exec $name ss -Hanup | awk '{ print $4, $6 }')" "$([ $name = second ] || echo '0.0.0.0:4789 ')"
  expect "bind, $name" "$(bind $name)" $([ $name = second ] && echo ok || echo EADDRINUSE)
done
stdbuf -oL ip -n second monitor link >"$1/told" 2>&1 &
monitor=$!
trap 'kill "$monitor"' EXIT
until ip netns exec second awk '$2 == 0 && $4 != "00000000" { found = 1 } END { exit !found }' /proc/net/netlink; do sleep 0.05; done
ip netns del first
until [ "$(grep -c '^Deleted' "$1/told")" -ge 2 ]; do sleep 0.05; done
expect "told" "$(sed -n 's/^\(Deleted\) [0-9]*: \([a-z]*\).*/\1 \2/p' "$1/told" | sort | xargs)" "Deleted mv Deleted vx"
expect "links of the second namespace" "$(links)" "${EXPECTED:-lo}"
SHELL
uname -sr
timeout 50 unshare --mount --net sh "$folder/tunnel.sh" "$folder"
