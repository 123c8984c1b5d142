#!/bin/sh
# After ENOBUFS a netlink socket takes nothing more until it has been read empty. A message that does not fit marks the
# socket as congested, and the mark goes with the last message of the queue, not with the first free space. Until then
# - events are lost although there is room for them, and no second ENOBUFS tells so: one error stands for two gaps, the
#   one before it and the one behind the messages that were still queued;
# - answers are lost as well: a request by that socket is sent with success, is carried out, and neither its answer nor
#   its ack comes, nor an error. Whoever waits for it waits for ever.
# ENOBUFS itself comes before the messages that are older than the gap. So a reader that starts its resynchronization (a
# dump by the same socket) at the error, as netlink(7) advises, asks too early: it has to read until EAGAIN first.
# With NETLINK_NO_ENOBUFS there is no such mark, and both arrive as soon as there is room.
# The drops in /proc/net/netlink count all of them.
# Seen on Linux 6.18. Needs root (for a network namespace), python3 and ip(8).
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/overrun.py" <<'PYTHON'
import errno, os, socket, struct, subprocess

SOL_NETLINK, ADD_MEMBERSHIP, NO_ENOBUFS = 270, 1, 5
RTM_NEWADDR, RTM_DELADDR, RTM_GETLINK, RTNLGRP_IPV4_IFADDR = 20, 21, 18, 5
NAMES = {2: "ack", 16: "link"}


def attribute(kind, value):
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def request(kind, flags, payload):
    return struct.pack("=IHHII", 16 + len(payload), kind, 1 | flags, 7, 0) + payload


def add(number):
    """An event: 10.0.0.number on lo."""
    address = bytes([10, 0, 0, number])
    changer.send(request(RTM_NEWADDR, 0x604, struct.pack("=BBBBI", 2, 32, 0, 0, 1) + attribute(2, address)))
    assert struct.unpack_from("=i", changer.recv(4096), 16)[0] == 0


def read():
    """The number of the address, link or ack, or the error."""
    try:
        data = listener.recv(65536, socket.MSG_DONTWAIT)
    except OSError as error:
        return errno.errorcode[error.errno]
    (kind,) = struct.unpack_from("=H", data, 4)
    return data[31] if kind == RTM_NEWADDR else NAMES[kind]


def until_empty():
    seen = []
    while not seen or seen[-1] != "EAGAIN":
        seen.append(read())
    return seen[:-1]


def drops():
    port = str(listener.getsockname()[0])
    return next(int(line.split()[8]) for line in open("/proc/net/netlink") if line.split()[1:3] == ["0", port])


def expect(what, seen, expected):
    print(f"{what}: {seen}")
    assert seen == expected, f"the behaviour has changed, expected {expected}"


subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
changer = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
ask = request(RTM_GETLINK, 4, bytes(16) + attribute(3, b"lo\0"))
number = 0
for quiet in 0, 1:
    print(f"NETLINK_NO_ENOBUFS {quiet}")
    listener = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
    listener.setsockopt(SOL_NETLINK, NO_ENOBUFS, quiet)
    listener.bind((0, 0))
    listener.setsockopt(SOL_NETLINK, ADD_MEMBERSHIP, RTNLGRP_IPV4_IFADDR)
    first = number + 1
    while drops() == 0:
        number += 1
        add(number)
    lost = number
    if not quiet:
        expect("the first read", read(), "ENOBUFS")
    expect("then the oldest messages", [read() for _ in range(lost - first - 1)], list(range(first, lost - 1)))
    number += 1
    add(number)
    listener.send(ask)
    expect("left, an event and a request later", until_empty(),
        [lost - 1, number, "link", "ack"] if quiet else [lost - 1] + ([number] if "EXPECTED" in os.environ else []))
    expect("drops", drops(), 1 if quiet else 4)
    number += 1
    add(number)
    listener.send(ask)
    expect("empty, an event and a request later", until_empty(), [number, "link", "ack"])
PYTHON
uname -sr
timeout 30 unshare --net python3 "$folder/overrun.py"
