#!/bin/sh
# What becomes of multicast memberships of a netlink socket before and at bind(2). netlink(7) tells of neither.
# NETLINK_ADD_MEMBERSHIP of a socket that is not bound succeeds, and getsockname(2) shows the group. Then:
# - no event arrives as long as the socket has no port id, and /proc/net/netlink does not list it;
# - a first send binds it, and from then on events arrive;
# - bind(2) with nl_groups 0, the usual one, ends the membership without an error. Of the groups above 32 it ends none.
# A second bind(2) of a bound socket, with the same port id, replaces its groups up to 32 in the same way.
# Seen on Linux 6.18. Needs root (for a network namespace), python3 and ip(8).
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/join.py" <<'PYTHON'
import os, socket, struct, subprocess

SOL_NETLINK, ADD_MEMBERSHIP, LIST_MEMBERSHIPS = 270, 1, 9
GETLINK_LO = struct.pack("=IHHIIBBHiII", 32, 18, 1, 1, 0, 0, 0, 0, 1, 0, 0)
count = 0


def member(*groups):
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    for group in groups:
        sock.setsockopt(SOL_NETLINK, ADD_MEMBERSHIP, group)
    return sock


def groups(sock):
    words = struct.unpack("=2I", sock.getsockopt(SOL_NETLINK, LIST_MEMBERSHIPS, 8))
    return [32 * word + bit + 1 for word in (0, 1) for bit in range(32) if words[word] >> bit & 1]


def told(sock):
    """Whether an RTM_NEWADDR arrives for an address that is added now. It is queued before ip(8) ends."""
    global count
    count += 1
    subprocess.run(["ip", "addr", "add", f"192.0.2.{count}/24", "dev", "lo"], check=True)
    seen = False
    while True:
        try:
            seen |= struct.unpack_from("=H", sock.recv(65536, socket.MSG_DONTWAIT), 4) == (20,)
        except BlockingIOError:
            return seen


def expect(what, seen, expected):
    print(f"{what}: {seen}")
    assert seen == expected, f"the behaviour has changed, expected {expected}"


sock = member(5)  # RTNLGRP_IPV4_IFADDR
expect("joined: groups, address, told", (groups(sock), sock.getsockname(), told(sock)), ([5], (0, 1 << 4), bool(os.environ.get("EXPECTED"))))
sock.send(GETLINK_LO)
expect("and after a send", (groups(sock), told(sock)), ([5], True))
sock = member(5, 33)
sock.bind((0, 0))
expect("joined 5 and 33, then bound with no groups", (groups(sock), told(sock)), ([33], False))
sock = member()
sock.bind((0, 1 << 4))
sock.bind((sock.getsockname()[0], 1 << 8))
expect("bound with group 5, then with group 9", (groups(sock), told(sock)), ([9], False))
PYTHON
uname -sr
unshare -n python3 "$folder/join.py"
