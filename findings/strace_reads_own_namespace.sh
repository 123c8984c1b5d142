#!/bin/sh
# strace(1) decodes the netlink messages of a process only in its own network namespace. What a message means depends
# on the protocol of its socket. strace asks for that by sock_diag(7), which answers for the namespace of strace, and
# finds no socket of another one. So `strace ip -n other link` and `strace ip netns exec other ip link` show
# "nlmsg_type=0x12 /* NLMSG_??? */" and raw bytes, and so does `strace -p` of a process in a container. The same request
# is RTM_GETLINK with its attributes if strace is in the namespace itself: `ip netns exec other strace ip link`, or
# nsenter(1) with --net for strace -p. strace -yy, which prints the protocol and the port id of each socket, prints
# "NETLINK" and an inode there.
# Seen with strace 6.1 on Linux 6.18. Needs root, ip(8) and strace(1). /run is a tmpfs of its own meanwhile.
set -eu
command -v strace >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends strace >/dev/null; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/look.sh" <<'SHELL'
mount -t tmpfs tmpfs /run
ip netns add other
shown() { # TITLE COMMAND...
  title=$1
  shift
  "$@" >/dev/null 2>"$folder/calls"
  echo "$title: $(sed -nE 's/.*sendmsg\((3[^,]*),.*nlmsg_type=([^,]*),.*/\2 on \1/p' "$folder/calls" | tail -1)"
}
folder=$1
set -- strace -yy -f -e trace=sendmsg
shown "its own" "$@" ip link show dev lo
shown "another, ip -n" "$@" ip -n other link show dev lo
shown "another, ip netns exec" "$@" ip netns exec other ip link show dev lo
shown "strace in it" ip netns exec other "$@" ip link show dev lo
SHELL
strace -V | head -1
uname -sr
seen=$(unshare --net --mount sh "$folder/look.sh" "$folder" | sed -E 's/[0-9]+\]/N]/')
echo "$seen"
expected="its own: RTM_GETLINK on 3<NETLINK:[ROUTE:N]>
another, ip -n: ${EXPECTED:-0x12 /* NLMSG_??? */} on 3<NETLINK:[N]>
another, ip netns exec: 0x12 /* NLMSG_??? */ on 3<NETLINK:[N]>
strace in it: RTM_GETLINK on 3<NETLINK:[ROUTE:N]>"
[ "$seen" = "$expected" ] || { echo "changed, expected:" >&2; echo "$expected" >&2; exit 1; }
