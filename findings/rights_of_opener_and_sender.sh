#!/bin/sh
# A request over netlink needs its capability twice: in the process that opened the socket, as it was at socket(2), and
# in the process that sends. With other descriptors it is enough to have opened them. So
# - a daemon that opens its sockets as root and then gives up its rights, or one that is handed the socket (by systemd's
#   ListenNetlink=, or SCM_RIGHTS), is refused with EPERM;
# - root is refused, too, on a socket that an unprivileged process has opened, or itself before it gained its rights;
# - a membership needs the capability of the process alone that joins the group, and stays when that is gone: events of
#   NETLINK_XFRM arrive at a process that may not even list policies.
# This holds for reads as well where these need a capability (NETLINK_NETFILTER, NETLINK_XFRM). netlink(7) says of
# rights only which processes may join groups.
# Seen on Linux 6.18. Needs root (for a network namespace), python3, ip(8), and xfrm in the kernel.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/rights.py" <<'PYTHON'
import errno, os, socket, struct, subprocess

ROUTE, XFRM, NETFILTER = 0, 6, 12
SOL_NETLINK, ADD_MEMBERSHIP = 270, 1
NLMSG_ERROR, NLMSG_DONE = 2, 3
XFRMNLGRP_POLICY, XFRM_MSG_NEWPOLICY, XFRM_MSG_GETPOLICY = 4, 19, 21
NOBODY = 65534


def attribute(kind, value):
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def opened():
    return {protocol: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) for protocol in (ROUTE, XFRM, NETFILTER)}


def outcome(sock, kind, flags, payload):
    """ok, or the errno of the answer."""
    sock.send(struct.pack("=IHHII", 16 + len(payload), kind, 1 | flags, 1, 0) + payload)
    data = sock.recv(65536)
    (kind,) = struct.unpack_from("=H", data, 4)
    number = struct.unpack_from("=i", data, 16)[0] if kind in (NLMSG_ERROR, NLMSG_DONE) else 0
    return errno.errorcode[-number] if number else "ok"


def requests(sockets, bridge):
    return [
        # RTM_NEWLINK of a bridge, the policies of xfrm, NFT_MSG_GETGEN.
        outcome(sockets[ROUTE], 16, 0x604, bytes(16) + attribute(3, bridge) + attribute(18, attribute(1, b"bridge\0"))),
        outcome(sockets[XFRM], XFRM_MSG_GETPOLICY, 0x300, b""),
        outcome(sockets[NETFILTER], 10 << 8 | 16, 0, bytes(4)),
    ]


def expect(what, seen, expected):
    print(f"{what}: {seen}")
    assert seen == expected, f"the behaviour has changed, expected {expected}"


def as_nobody(function):
    os.seteuid(NOBODY)  # This takes the effective capabilities away, and seteuid(0) gives them back.
    try:
        return function()
    finally:
        os.seteuid(0)


refused = [os.environ.get("EXPECTED", "EPERM")] * 3
by_root = opened()
by_nobody = as_nobody(opened)
expect("opened by root, sent by root", requests(by_root, b"b0\0"), ["ok"] * 3)
expect("opened by root, sent by nobody", as_nobody(lambda: requests(by_root, b"b1\0")), refused)
expect("opened by nobody, sent by root", requests(by_nobody, b"b2\0"), refused)
expect("opened by root, sent by root again", requests(by_root, b"b3\0"), ["ok"] * 3)

listener = by_nobody[XFRM]
try:
    as_nobody(lambda: listener.setsockopt(SOL_NETLINK, ADD_MEMBERSHIP, XFRMNLGRP_POLICY))
    joined = "ok"
except OSError as error:
    joined = errno.errorcode[error.errno]
expect("opened by nobody, nobody joins a group", joined, "EPERM")
listener.setsockopt(SOL_NETLINK, ADD_MEMBERSHIP, XFRMNLGRP_POLICY)
subprocess.run(["ip", "xfrm", "policy", "add", "src", "192.0.2.0/24", "dst", "198.51.100.0/24", "dir", "out"], check=True)
event = as_nobody(lambda: listener.recv(65536, socket.MSG_DONTWAIT))
expect("root joins by it; nobody reads the event", struct.unpack_from("=H", event, 4)[0], XFRM_MSG_NEWPOLICY)
PYTHON
uname -sr
timeout 30 unshare --net python3 "$folder/rights.py"
