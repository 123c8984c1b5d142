#!/bin/sh
# A multicast over NETLINK_USERSOCK is ECONNREFUSED, and delivered. After the members of the groups, sendmsg(2) serves
# the port id of the address, and port id 0 is the kernel: it does not listen to this protocol. Seen on Linux 6.18:
# - with members or without, the errno is the same, so it does not say whether anyone has got the datagram;
# - with nl_pid of another socket in the address the call succeeds, with members or without: that socket gets a unicast;
# - NETLINK_ROUTE, to which the kernel listens, returns success, and the kernel reads the datagram as a request, too.
# So a sender that repeats what is refused sends it twice.
# Needs root (to send to groups, in a network namespace) and python3.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/multicast.py" <<'PYTHON'
import errno, os, socket, struct

USERSOCK, ROUTE = 2, 0


def opened(protocol, groups=0):
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
    sock.bind((0, groups))
    return sock


def sent(sender, data, address):
    try:
        sender.sendto(data, address)
        return "sent"
    except OSError as error:
        return errno.errorcode[error.errno]


def got(sock):
    try:
        return sock.recv(65536, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return None


sender, member, other = opened(USERSOCK), opened(USERSOCK, 1), opened(USERSOCK)
# NLMSG_NOOP with NLM_F_REQUEST and NLM_F_ACK
noop = struct.pack("=IHHII", 16, 1, 5, 7, 0)
route, listener = opened(ROUTE), opened(ROUTE, 1)
refused = os.environ.get("EXPECTED", "ECONNREFUSED")
for what, seen, expected in (
    ("to a group with a member", (sent(sender, b"one", (0, 1)), got(member), got(other)), (refused, b"one", None)),
    ("to a group without members", (sent(sender, b"two", (0, 2)), got(member), got(other)), (refused, None, None)),
    ("to a socket and a group", (sent(sender, b"three", (other.getsockname()[0], 1)), got(member), got(other)), ("sent", b"three", b"three")),
    ("the same over NETLINK_ROUTE", (sent(route, noop, (0, 1)), got(listener) == noop, got(route) is not None), ("sent", True, True)),
):
    print(f"{what}: {seen}")
    assert seen == expected, f"the behaviour has changed, expected {expected}"
PYTHON
uname -sr
unshare -n python3 "$folder/multicast.py"
