#!/bin/sh
# An ack with errno 0 does not say that a request was carried out. The kernel carries out messages with NLM_F_REQUEST
# whose type is not below 16 (NLMSG_MIN_TYPE); others it skips, and acks them with success if they have NLM_F_ACK. So a
# client that forgets the flag is told that its link was made. netlink(7) says that the flag "must be set". Seen in all
# protocols here: NETLINK_ROUTE, XFRM, NETFILTER, GENERIC and SOCK_DIAG.
# A message whose length is beyond the end of its datagram is skipped without any answer, with all that is behind it;
# those before it are carried out. send(2) returns success in each case.
# Seen on Linux 6.18. Needs root (for a network namespace), python3 and ip(8).
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/acks.py" <<'PYTHON'
import os, socket, struct, subprocess

ROUTE, SOCK_DIAG, XFRM, NETFILTER, GENERIC = 0, 4, 6, 12, 16
REQUEST, ACK, EXCL, CREATE = 1, 4, 0x200, 0x400
NLMSG_NOOP, NLMSG_ERROR, NLMSG_DONE, RTM_NEWLINK = 1, 2, 3, 16


def attribute(kind, value):
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def message(kind, flags, seq, payload, longer=0):
    return struct.pack("=IHHII", 16 + len(payload) + longer, kind, flags, seq, 0) + payload


def bridge(name):
    return bytes(16) + attribute(3, name + b"\0") + attribute(18, attribute(1, b"bridge\0"))


def answers(protocol, data):
    """(type, sequence number, errno of an NLMSG_ERROR) of all answers: they are there when send returns."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
    assert sock.send(data) == len(data)
    seen = []
    while True:
        try:
            data = sock.recv(65536, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return seen
        while data:
            length, kind, _flags, seq = struct.unpack_from("=IHHI", data)
            seen.append((kind, seq) + ((-struct.unpack_from("=i", data, 16)[0],) if kind == NLMSG_ERROR else ()))
            data = data[length + 3 & ~3 :]


def expect(what, seen, expected):
    print(f"{what}: {seen}")
    assert seen == expected, f"the behaviour has changed, expected {expected}"


def there():
    names = subprocess.run(["ip", "-br", "link"], stdout=subprocess.PIPE, text=True, check=True).stdout.split("\n")
    return [line.split()[0] for line in names if line.startswith("b")]


done = [(NLMSG_ERROR, 1, int(os.environ.get("EXPECTED", "0")))]
make = ACK | CREATE | EXCL
expect("RTM_NEWLINK without NLM_F_REQUEST", answers(ROUTE, message(RTM_NEWLINK, make, 1, bridge(b"b1"))), done)
expect("bridges", there(), [])
# A message of no bytes is too short for each of these: with NLM_F_REQUEST they are refused, without it not read.
for name, protocol, kind in ("XFRM", XFRM, 16), ("NETFILTER", NETFILTER, 10 << 8), ("GENERIC", GENERIC, 16), ("SOCK_DIAG", SOCK_DIAG, 20):
    expect(f"{name}, no payload, without NLM_F_REQUEST", answers(protocol, message(kind, ACK, 1, b"")), done)
for kind in NLMSG_NOOP, NLMSG_DONE, 15:
    expect(f"a request of type {kind}", answers(ROUTE, message(kind, REQUEST | ACK, 1, b"")), done)

make |= REQUEST
datagram = (
    message(RTM_NEWLINK, make, 1, bridge(b"b1"))
    + message(RTM_NEWLINK, make, 2, bridge(b"b2"), longer=400)
    + message(RTM_NEWLINK, make, 3, bridge(b"b3"))
)
expect("three requests, the second with a length beyond the end", answers(ROUTE, datagram), [(NLMSG_ERROR, 1, 0)])
expect("bridges", there(), ["b1"])
PYTHON
uname -sr
timeout 30 unshare --net python3 "$folder/acks.py"
