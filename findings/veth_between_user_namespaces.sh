#!/bin/sh
# A veth(4) cannot join the network namespaces of two sibling user namespaces, though one user owns both: the
# kernel wants CAP_NET_ADMIN over both ends from one sender, and who is in the one has nothing in the other. In
# network namespaces of one user namespace it can. And: a veth whose *peer* is made with IFF_UP is refused as a whole, with
# ENOTCONN, since that end is opened before it has its own peer; IFF_UP of the first end is taken.
# Seen on Linux 6.18 with iproute2 6.1 and util-linux 2.38. Needs no root: unshare(1), nsenter(1), ip(8).
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
