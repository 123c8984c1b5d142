#!/bin/sh
# The preferred lifetime of an IPv4 address has no effect. ip-address(8) says of preferred_lft: "When it expires, the
# address is no longer used for new outgoing connections". The kernel sets IFA_F_DEPRECATED, sends RTM_NEWADDR, and
# `ip addr` prints "deprecated". But the choice of a source address looks at the flag in IPv6 alone:
# - an IPv4 address that is made deprecated stays the source of new connections, although another address of the same
#   prefix is preferred: that one is "secondary", which decides;
# - an IPv6 address in the same place is left for the preferred one at once.
# What takes an IPv4 address out of use is `src` of the route.
# Seen with iproute2 6.1.0 on Linux 6.18. Needs root (for a network namespace) and ip(8).
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/sources.sh" <<'SHELL'
set -eu
expect() { # TITLE SEEN EXPECTED
  echo "$1: $2"
  [ "$2" = "$3" ] || { echo "changed, expected: $3" >&2; exit 1; }
}
source_to() { ip route get "$1" | sed -n 's/.* src \([^ ]*\).*/\1/p'; }
ip link set lo up
ip link add va type veth peer name vb
ip link set va up
ip link set vb up
for address in 192.0.2.1/24 192.0.2.2/24 "2001:db8::1/64 nodad" "2001:db8::2/64 nodad"; do ip addr add $address dev va; done
six=$(source_to 2001:db8::9)
expect "sources" "$(source_to 192.0.2.9) $six" "192.0.2.1 $six"
ip addr change 192.0.2.1/24 dev va preferred_lft 0
ip addr change "$six/64" dev va nodad preferred_lft 0
expect "deprecated" "$(ip -o addr show dev va deprecated | awk '{ print $4 }' | xargs)" "192.0.2.1/24 $six/64"
other=$([ "$six" = 2001:db8::1 ] && echo 2001:db8::2 || echo 2001:db8::1)
expect "sources" "$(source_to 192.0.2.9) $(source_to 2001:db8::9)" "${EXPECTED:-192.0.2.1} $other"
ip route change 192.0.2.0/24 dev va src 192.0.2.2
expect "sources, with src in the route" "$(source_to 192.0.2.9)" "192.0.2.2"
SHELL
ip -V
uname -sr
timeout 50 unshare --net sh "$folder/sources.sh"
