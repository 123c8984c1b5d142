#!/bin/sh
# socket(7) describes these options for all sockets. A netlink socket accepts them, getsockopt(2) reads them back as
# set, and nothing comes of it. Seen on Linux 6.18:
#   SO_RXQ_OVFL                  no control message with the count of drops, although there is one in /proc/net/netlink
#   SO_TIMESTAMP, SO_TIMESTAMPNS, SO_TIMESTAMPING   no control message with a time
#   SO_RCVLOWAT                  poll(2) reports, and recv(2) returns, the first message
#   SO_BINDTODEVICE              events and answers about other links arrive
# SO_PASSCRED has an effect, and SO_PASSPIDFD and SO_PEEK_OFF are refused (EOPNOTSUPP). Of the ioctls FIONREAD
# (SIOCINQ) is ENOTTY, and those of netdevice(7) work as on any socket.
# Needs root (for a network namespace), python3 and ip(8).
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/options.py" <<'PYTHON'
import errno, fcntl, os, select, socket, struct, subprocess

SOL_NETLINK, ADD_MEMBERSHIP, RTNLGRP_LINK, RTM_NEWLINK, RTM_GETLINK = 270, 1, 1, 16, 18
ACCEPTED = {
    "SO_RXQ_OVFL": (40, 1), "SO_TIMESTAMP": (29, 1), "SO_TIMESTAMPNS": (35, 1), "SO_TIMESTAMPING": (37, 0x1A),
    "SO_RCVLOWAT": (18, 100000), "SO_PASSCRED": (16, 1), "SO_PASSPIDFD": (76, 1), "SO_PEEK_OFF": (42, 0),
}  # fmt: skip


def outcome(function):
    try:
        return function()
    except OSError as error:
        return errno.errorcode[error.errno]


def set_and_read(option, value):
    sock.setsockopt(socket.SOL_SOCKET, option, value)
    return "set" if sock.getsockopt(socket.SOL_SOCKET, option) == value else "another value"


def received():
    """The types of control messages, and whether the message is about vb. The name is its first attribute."""
    data, controls, _flags, _address = sock.recvmsg(65536, 4096)
    assert struct.unpack_from("=H", data, 4) == (RTM_NEWLINK,)
    return [(level, kind) for level, kind, _data in controls], b"vb\0" in data


def expect(what, seen, expected):
    print(f"{what}: {seen}")
    assert seen == expected, f"the behaviour has changed, expected {expected}"


def ip(command):
    subprocess.run(["ip", *command.split()], check=True)


ip("link add va type veth peer name vb")
ip("link set vb up")
sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
sock.bind((0, 0))
sock.settimeout(10)
for name, (option, value) in ACCEPTED.items():
    expect(name, outcome(lambda: set_and_read(option, value)), "ENOTSUP" if name in ("SO_PASSPIDFD", "SO_PEEK_OFF") else "set")
sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"va\0")
expect("SO_BINDTODEVICE", sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16), b"va\0")
expect("FIONREAD", outcome(lambda: fcntl.ioctl(sock, 0x541B, bytes(4))), "ENOTTY")
expect("SIOCGIFINDEX of lo", struct.unpack_from("=i", outcome(lambda: fcntl.ioctl(sock, 0x8933, struct.pack("16s16x", b"lo"))), 16)[0], 1)

passed = [(socket.SOL_SOCKET, 2)]  # SCM_CREDENTIALS alone
sock.send(struct.pack("=IHHII", 40, RTM_GETLINK, 1, 1, 0) + bytes(16) + struct.pack("=HH4s", 7, 3, b"vb\0\0"))
expect("an answer: control messages, about vb", received(), (passed, True))

sock.setsockopt(SOL_NETLINK, ADD_MEMBERSHIP, RTNLGRP_LINK)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
for number in range(10):
    ip(f"link set vb txqueuelen {number + 1}")
line = next(line for line in open("/proc/net/netlink") if line.split()[1:3] == ["0", str(sock.getsockname()[0])])
expect("drops", int(line.split()[8]) > 0, True)
expect("the first read", outcome(received), "ENOBUFS")
poll = select.poll()
poll.register(sock, select.POLLIN)
expect("poll", poll.poll(10000), [(sock.fileno(), select.POLLIN)])
if "EXPECTED" in os.environ:
    passed = passed + [(socket.SOL_SOCKET, 40)]
expect("an event after the drops: control messages, about vb", received(), (passed, True))
PYTHON
uname -sr
timeout 30 unshare --net python3 "$folder/options.py"
