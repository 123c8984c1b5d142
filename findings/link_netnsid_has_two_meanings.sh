#!/bin/sh
# IFLA_LINK_NETNSID says in which namespace the other end of a veth(4) is. To a socket that looks into another namespace
# the number means two things:
# - in an event that it gets by NETLINK_LISTEN_ALL_NSID, it is the number in the namespace of the event;
# - in an answer to RTM_GETLINK with IFLA_TARGET_NETNSID, it is the number in the namespace of the socket.
# Both have the same kinds of values, so an event can name a namespace that is there and wrong: `ip monitor all-nsid`
# prints "link-netns other" for a link whose other end is in the monitor's own namespace.
# If the other end is in the socket's own namespace, the request of the second kind gives that a number in itself, and
# sends RTM_NEWNSID for it: a read has made it.
# Seen on Linux 6.18 with iproute2 6.1.0. Needs root, python3 and ip(8). /run is a tmpfs of its own meanwhile.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/get.py" <<'PYTHON'
import os, socket, struct


def attributes(data):
    seen = {}
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        seen[kind] = data[4:length]
        data = data[(length + 3) & ~3:]
    return seen


def sent(sock):
    """RTM_NEWNSID and its number, or the nsid of the sender, name and IFLA_LINK_NETNSID of RTM_NEWLINK."""
    data, ancillary, _flags, _address = sock.recvmsg(65536, 64)
    nsid = [struct.unpack("=i", value)[0] for _level, kind, value in ancillary if kind == 8]
    if struct.unpack_from("=H", data, 4)[0] == 88:
        return "RTM_NEWNSID", struct.unpack("=i", attributes(data[20:])[1])[0]
    seen = attributes(data[32:])
    return (nsid or ["own"])[0], seen[3].decode()[:-1], struct.unpack("=i", seen[37])[0] if 37 in seen else None


def listener():
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    sock.bind((0, 0))
    sock.settimeout(10)
    sock.setsockopt(270, 8, 1)  # NETLINK_LISTEN_ALL_NSID
    for group in (1, 28):  # RTNLGRP_LINK, RTNLGRP_NSID
        sock.setsockopt(270, 1, group)
    return sock


def expect(what, seen, expected):
    print(f"{what}: {seen}")
    assert seen == expected, f"the behaviour has changed, expected {expected}"


def ask(name):
    """By IFLA_TARGET_NETNSID 3 and IFLA_IFNAME."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as sock:
        body = bytes(16) + struct.pack("=HHiHH4s", 8, 46, 3, 7, 3, name.encode() + b"\0")
        sock.send(struct.pack("=IHHII", 16 + len(body), 18, 1, 1, 0) + body)
        return sent(sock)[2]


events = listener()
os.system("ip -n far link set va mtu 1500; ip -n far link set vx mtu 1400")
expect("event of the link to this namespace", sent(events), (3, "va", int(os.environ.get("EXPECTED", "0"))))
expect("event of the link to number 0", sent(events), (3, "vx", 8))
expect("answer about the link to this namespace", ask("va"), 1)
expect("which was an event", sent(events), ("RTM_NEWNSID", 1))
expect("answer about the link to number 0", ask("vx"), 0)
PYTHON
cat >"$folder/names.sh" <<'SHELL'
mount -t tmpfs none /run
mkdir /run/netns
ip netns add other
ip netns add far
ip netns attach here $$
# Here other is 0 and far is 3. In far this namespace is 0, and other is 8.
ip netns set other 0
ip netns set far 3
ip -n far netns set here 0
ip -n far netns set other 8
ip -n far link add va type veth peer name vo netns here
ip -n far link add vx type veth peer name vy netns other
stdbuf -oL ip monitor link all-nsid >"$1/told" &
monitor=$!
mtu=1400
until grep -q link-netns "$1/told"; do mtu=$((mtu - 1)); ip -n far link set va mtu "$mtu"; done
kill "$monitor"
said=$(sed -n 's/.*\(link-netns .*\)/\1/p' "$1/told" | head -1)
echo "ip monitor all-nsid about the link to this namespace: $said"
[ "$said" = "link-netns other" ] || { echo "changed: expected link-netns other" >&2; exit 1; }
exec timeout 60 python3 "$1/get.py"
SHELL
echo "kernel $(uname -r), $(ip -V)"
unshare --mount --net timeout 100 sh -e "$folder/names.sh" "$folder"
