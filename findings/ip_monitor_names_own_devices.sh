#!/bin/sh
# `ip monitor all-nsid` prints events of other network namespaces with the names of its own devices. Events of routes,
# neighbours and addresses, and of links on top of others, hold the index of a device instead of its name. ip(8) looks
# the index up among the devices of its own namespace, and prints the name behind "[nsid 7]". Each namespace counts its
# devices from 1, so there is nearly always a device of that index. Only without one is the name "if9", which tells the
# truth. An event of an IPv4 address has the wrong name in front, and its label, with the right name, at the end.
# A program that reads these events has to keep a table of names for each namespace.
# Seen with iproute2 6.1.0 on Linux 6.18. Needs root and ip(8). /run is a tmpfs of its own meanwhile.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/monitor.sh" <<'SHELL'
set -eu
mount -t tmpfs tmpfs /run
there() { ip -n other "$@"; }
ip netns add other
ip netns set other 7
ip link add own2 index 2 type bridge
there link add their2 index 2 type bridge
there link add their9 index 9 type bridge
there link set their2 up
there link set their9 up

stdbuf -oL ip monitor all-nsid >"$1/told" &
trap "kill $!" EXIT
# The monitor has joined the groups when the first event is there.
until grep -q lookup "$1/told"; do there rule add table 5; there rule del table 5; done 2>/dev/null
there route add 203.0.113.0/24 dev their2
there route add 198.51.100.0/24 dev their9
there addr add 192.0.2.1/32 dev their2
there addr add 2001:db8::1/128 dev their2 nodad
there neigh add 192.0.2.9 lladdr 02:00:00:00:00:01 dev their2
there link add link their2 name upper2 type macvlan
until grep -q upper2 "$1/told"; do sleep 0.05; done
sed -nE '/(203.0.113.0|198.51.100.0|192.0.2.9|inet 192.0.2.1|inet6 2001:db8::1)/s/ *$//p; s/^(.*upper2@[a-z0-9]*):.*/\1/p' "$1/told"
SHELL
ip -V
uname -sr
seen=$(timeout 60 unshare --net --mount sh "$folder/monitor.sh" "$folder")
echo "$seen"
expected="[nsid 7]203.0.113.0/24 dev ${EXPECTED:-own2} scope link
[nsid 7]198.51.100.0/24 dev if9 scope link
[nsid 7]2: own2    inet 192.0.2.1/32 scope global their2
[nsid 7]2: own2    inet6 2001:db8::1/128 scope global nodad
[nsid 7]192.0.2.9 dev own2 lladdr 02:00:00:00:00:01 PERMANENT
[nsid 7]3: upper2@own2"
[ "$seen" = "$expected" ] || { echo "changed, expected:" >&2; echo "$expected" >&2; exit 1; }
