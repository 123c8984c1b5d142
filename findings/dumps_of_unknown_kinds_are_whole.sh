#!/bin/sh
# A filter of a dump that names what the kernel does not know is no filter: the dump is whole, and ends without an
# error. So a question of the form "which of these are there?" gets the answer "all" on a kernel that has none, since a
# module is not loaded or not built:
#   links of a kind (IFLA_INFO_KIND)   of a known kind: those; of an unknown one: all links
#   links of a master (IFLA_MASTER)    of an index that is not there: none
#   addresses, routes of a family      of an unknown one, as AF_MPLS without MPLS: all, of both families
#   neighbours of such a family        none
#   rules of such a family             EAFNOSUPPORT
# NETLINK_GET_STRICT_CHK, by which the kernel promises to refuse a filter that it does not apply, changes nothing. ip(8)
# filters once more on its own, so `ip link show type wireguard` and `ip -f mpls route` print nothing. A client that
# trusts the filter takes every link for a WireGuard link: it has to compare kind and family of each message.
# Seen on Linux 6.18. Needs root (for a network namespace), python3 and ip(8).
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/dumps.py" <<'PYTHON'
import os, socket, struct, subprocess

NLMSG_ERROR, NLMSG_DONE = 2, 3
SOL_NETLINK, GET_STRICT_CHK = 270, 12
APPLETALK = 5  # of which rtnetlink knows nothing, as of MPLS without its module
expected = int(os.environ.get("EXPECTED", "4"))


def attribute(kind, value):
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def dump(what, kind, payload, expected):
    """The number of messages, and the errno of NLMSG_DONE."""
    sock.send(struct.pack("=IHHII", 16 + len(payload), kind, 0x301, 1, 0) + payload)
    count = 0
    while True:
        data = sock.recv(1 << 20)
        while data:
            length, kind = struct.unpack_from("=IH", data)
            assert kind != NLMSG_ERROR
            if kind == NLMSG_DONE:
                seen = count, -struct.unpack_from("=i", data, 16)[0]
                print(f"{what}: {seen[0]} messages, errno {seen[1]}")
                assert seen == expected, f"the behaviour has changed, expected {expected}"
                return
            count += 1
            data = data[length + 3 & ~3 :]


def links(kind):
    return bytes(16) + attribute(18, attribute(1, kind))


subprocess.run(
    "ip link add br0 type bridge && ip link add va type veth peer name vb && ip link set va up &&"
    "ip addr add 192.0.2.1/24 dev va && ip route add unreachable 2001:db8::/32 &&"
    "ip neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev va",
    shell=True,
    check=True,
)
for strict in 0, 1:
    print(f"NETLINK_GET_STRICT_CHK {strict}")
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    sock.setsockopt(SOL_NETLINK, GET_STRICT_CHK, strict)
    dump("links of the kind bridge", 18, links(b"bridge\0"), (1, 0))
    dump("links of the kind nosuchkind", 18, links(b"nosuchkind\0"), (expected, 0))
    dump("links of a master that is not there", 18, bytes(16) + attribute(10, struct.pack("=I", 99)), (0, 0))
    dump("addresses of AF_APPLETALK", 22, bytes([APPLETALK]) + bytes(7), (1, 0))
    # 192.0.2.0/24, 192.0.2.1, 192.0.2.255; 2001:db8::/32
    dump("routes of AF_APPLETALK", 26, bytes([APPLETALK]) + bytes(11), (4, 0))
    dump("neighbours of AF_APPLETALK", 30, bytes([APPLETALK]) + bytes(11), (0, 0))
    dump("rules of AF_APPLETALK", 34, bytes([APPLETALK]) + bytes(11), (0, 97))
PYTHON
uname -sr
unshare --net python3 "$folder/dumps.py"
