#!/bin/sh
# nl_groups of struct sockaddr_nl is a mask of groups, but not for a sender. Seen on Linux 6.18:
# - bind(2) with the mask joins all groups of it;
# - sendto(2) with the same mask reaches the members of its lowest group, and nobody else: the kernel takes ffs() of it;
# - whether there were others, the caller cannot see: the result is the same.
# So a sender to several groups sends once for each.
# Needs root (to send to groups, in a network namespace) and python3.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/masks.py" <<'PYTHON'
import errno, os, socket

USERSOCK = 2


def opened(groups=0):
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, USERSOCK)
    sock.bind((0, groups))
    return sock


def sent(data, mask):
    try:
        sender.sendto(data, (0, mask))
        return "sent"
    except OSError as error:
        return errno.errorcode[error.errno]


def got(sock):
    try:
        return sock.recv(65536, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return None


second, third, last, both = 1 << 1, 1 << 2, 1 << 31, 1 << 1 | 1 << 2
sender = opened()
members = [opened(second), opened(third), opened(last), opened(both)]
others = os.environ.get("EXPECTED", "nothing")
others = None if others == "nothing" else others.encode()
for what, mask, expected in (
    ("group 2", second, (b"x", None, None, b"x")),
    ("group 3", third, (None, b"x", None, b"x")),
    ("groups 2 and 3", both, (b"x", others, None, b"x")),
    ("groups 3 and 32", third | last, (None, b"x", others, b"x")),
    ("group 32", last, (None, None, b"x", None)),
):
    # Nobody in the kernel listens to this protocol: the result is ECONNREFUSED, whoever has got the datagram.
    seen = (sent(b"x", mask), *map(got, members))
    print(f"to {what}: {seen}, of members of 2, of 3, of 32, of 2 and 3")
    assert seen == ("ECONNREFUSED", *expected), f"the behaviour has changed, expected {expected}"
    assert all(got(member) is None for member in members)
PYTHON
uname -sr
unshare -n python3 "$folder/masks.py"
