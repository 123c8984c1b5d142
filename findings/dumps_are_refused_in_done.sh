#!/bin/sh
# The error of a dump that has begun is in NLMSG_DONE, whose payload is a negative errno, or 0. No NLMSG_ERROR comes: a
# reader that ends at NLMSG_DONE without a look at it takes a refusal for an empty list. And what is asked for and is
# not there is an error or an empty list depending on the kind:
#   sockets of a protocol that the kernel lacks         ENOENT in NLMSG_DONE
#   routes of a table that does not exist               ENOENT in NLMSG_DONE with NETLINK_GET_STRICT_CHK; without, all
#   addresses of an interface that does not exist       ENODEV in NLMSG_DONE with it; without, all addresses
#   neighbours, links, nexthops of such an interface    none
#   nf_tables: rules of a table that does not exist     none
#   nf_tables: elements of such a set                   ENOENT in NLMSG_ERROR
# With NETLINK_EXT_ACK the sentence is an attribute behind the number in NLMSG_DONE, and not at the place that it has in
# NLMSG_ERROR.
# Seen on Linux 6.18, which has no DCCP any more. Needs root (for a network namespace), python3 and ip(8).
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/dump.py" <<'PYTHON'
import errno, os, socket, struct

ROUTE, SOCK_DIAG, NETFILTER = 0, 4, 12
EXT_ACK, STRICT = 11, 12  # NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK
TYPES = {2: "NLMSG_ERROR", 3: "NLMSG_DONE"}


def attribute(kind, value):
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def dump(protocol, kind, body, *options):
    """What ends the dump, its errno, and what is behind that."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as sock:
        for option in options:
            sock.setsockopt(270, option, 1)
        sock.send(struct.pack("=IHHII", 16 + len(body), kind, 0x301, 1, 0) + body)
        messages = 0
        while True:
            data = sock.recv(65536)
            while data:
                length, seen = struct.unpack_from("=IH", data)
                if seen in TYPES:
                    number = -struct.unpack_from("=i", data, 16)[0]
                    sentence = data[24:length].rstrip(b"\0").decode() if seen == 3 else ""
                    return messages, TYPES[seen], errno.errorcode.get(number, 0), sentence
                messages += 1
                data = data[(length + 3) & ~3:]


def expect(what, seen, *expected):
    print(f"{what}: {seen}")
    assert seen == expected, f"the behaviour has changed, expected {expected}"


routes = struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 0, 0, 99, 0, 0, 0, 0)
addresses = struct.pack("=BBBBI", socket.AF_INET, 0, 0, 0, 77)
neighbours = struct.pack("=BxxxiHBB", socket.AF_INET, 0, 0, 0, 0) + attribute(8, struct.pack("=I", 77))  # NDA_IFINDEX
links = bytes(16) + attribute(10, struct.pack("=I", 77))  # IFLA_MASTER
nexthops = bytes(8) + attribute(5, struct.pack("=I", 77))  # NHA_OIF
dccp = struct.pack("=BBBxI", socket.AF_INET, 33, 0, 0xFFFFFFFF) + bytes(48)
table, of_set = attribute(1, b"none\0"), attribute(2, b"none\0")
nft = struct.pack("=BBH", 2, 0, 0)
expect("sockets of DCCP", dump(SOCK_DIAG, 20, dccp), 0, "NLMSG_DONE", os.environ.get("EXPECTED", "ENOENT"), "")
expect("routes", dump(ROUTE, 26, routes, STRICT), 0, "NLMSG_DONE", "ENOENT", "")
expect("with NETLINK_EXT_ACK", dump(ROUTE, 26, routes, STRICT, EXT_ACK),
       0, "NLMSG_DONE", "ENOENT", "ipv4: FIB table does not exist")
expect("without NETLINK_GET_STRICT_CHK", dump(ROUTE, 26, routes), 3, "NLMSG_DONE", 0, "")
expect("addresses", dump(ROUTE, 22, addresses, STRICT), 0, "NLMSG_DONE", "ENODEV", "")
expect("without NETLINK_GET_STRICT_CHK", dump(ROUTE, 22, addresses), 1, "NLMSG_DONE", 0, "")
expect("neighbours", dump(ROUTE, 30, neighbours, STRICT), 0, "NLMSG_DONE", 0, "")
expect("links of a master", dump(ROUTE, 18, links, STRICT), 0, "NLMSG_DONE", 0, "")
expect("nexthops", dump(ROUTE, 106, nexthops, STRICT), 0, "NLMSG_DONE", 0, "")
expect("nf_tables: rules", dump(NETFILTER, 10 << 8 | 7, nft + table), 0, "NLMSG_DONE", 0, "")
expect("nf_tables: elements", dump(NETFILTER, 10 << 8 | 13, nft + table + of_set), 0, "NLMSG_ERROR", "ENOENT", "")
PYTHON
uname -sr
timeout 50 unshare --net sh -c 'ip link set lo up && exec python3 "$1"' sh "$folder/dump.py"
