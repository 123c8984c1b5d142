#!/bin/sh
# A veth(4) cannot connect network namespaces of two sibling user namespaces, even if one user owns both. The kernel
# requires that the sender has CAP_NET_ADMIN over both ends, and a process in one user namespace has no capability
# in the other. A veth can connect network namespaces of one user namespace. A veth whose *peer* is made with IFF_UP
# is refused entirely, with ENOTCONN, since the kernel brings that end up before it has its own peer. IFF_UP of the
# first end is accepted. Seen on Linux 6.18 with iproute2 6.1 and util-linux 2.38. Needs unshare(1), nsenter(1) and
# ip(8), but not root.
set -eu
folder=$(mktemp -d)
trap 'kill $first $second $third 2>/dev/null; rm -rf "$folder"' EXIT
first= second= third=
uname -r; ip -V; unshare --version

hold() { # starts a process in namespaces; waits for it
  "$@" sh -c 'echo ready; exec sleep 60' >"$folder/out" & held=$!
  until [ -s "$folder/out" ]; do sleep 0.05; done; : >"$folder/out"
}
hold unshare --user --map-root-user --net; first=$held
hold unshare --user --map-root-user --net; second=$held
hold nsenter -t "$first" --user --preserve-credentials unshare --net; third=$held

inside() { nsenter -t "$first" --user --net --preserve-credentials "$@" 2>&1 || true; }
expect() { # TITLE WANTED SEEN
  printf '%s: %s\n' "$1" "${3:-done}"
  case "$3" in *"$2"*) [ -n "$2" ] || [ -z "$3" ] || { echo "changed"; exit 1; } ;; *) echo "changed, expected: $2"; exit 1 ;; esac
}
expect "an end in the network namespace of a sibling user namespace" "Operation not permitted" \
  "$(inside ip link add a0 type veth peer name a1 netns "$second")"
expect "an end in another network namespace of the same user namespace" "" \
  "$(inside ip link add b0 type veth peer name b1 netns "$third")"
expect "a pair whose peer is made with IFF_UP" "Transport endpoint is not connected" \
  "$(inside ip link add c0 type veth peer name c1 up)"
expect "a pair whose first end is" "" "$(inside ip link add c0 up type veth peer name c1)"
