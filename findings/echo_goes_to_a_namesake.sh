#!/bin/sh
# NLM_F_ECHO asks the kernel to send the event of a change back to the sender. If the change is made in another network
# namespace (RTM_NEWLINK with IFLA_NET_NS_FD, RTM_DELLINK with IFLA_TARGET_NETNSID), the kernel looks the sender's port
# id up in that namespace. So the sender gets the ack alone, and a socket there that has the same port id gets the echo,
# as an answer to a request that it has not made: it needs no membership, and sequence number and port id are those of
# the sender. Without such a socket the echo is lost. Port ids are unique within a namespace, and they are process ids
# as a rule, so equal ones are common among containers: each first process is number 1.
# Seen on Linux 6.18. Needs root (for network namespaces), and python3.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/echo.py" <<'PYTHON'
import ctypes, os, socket, struct

CLONE_NEWNET = 0x40000000
REQUEST, ACK, ECHO, EXCL, CREATE = 0x1, 0x4, 0x8, 0x200, 0x400
NAMES = {2: "ack", 16: "RTM_NEWLINK", 17: "RTM_DELLINK"}
libc = ctypes.CDLL(None, use_errno=True)


def attribute(kind, value):
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def bound(port=0):
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    sock.bind((port, 0))
    return sock


def request(kind, flags, seq, payload):
    return struct.pack("=IHHII", 16 + len(payload), kind, REQUEST | ACK | flags, seq, 0) + payload


def received(sock):
    """(type, sequence number) of all that has arrived: the kernel answers before send returns."""
    seen = []
    while True:
        try:
            data = sock.recv(65536, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return seen
        kind, _flags, seq, port = struct.unpack_from("=HHII", data, 4)
        assert port == sender.getsockname()[0]
        seen.append((NAMES[kind], seq))


def change(what, message, expected):
    sender.send(message)
    seen = received(sender), received(namesake)
    print(f"{what}: the sender gets {seen[0]}, the other {seen[1]}")
    assert seen == expected, f"the behaviour has changed, expected {expected}"


own = os.open("/proc/self/ns/net", os.O_RDONLY)
libc.unshare(CLONE_NEWNET)
other = os.open("/proc/self/ns/net", os.O_RDONLY)
libc.setns(own, CLONE_NEWNET)
sender = bound()
libc.setns(other, CLONE_NEWNET)
namesake = bound(sender.getsockname()[0])
libc.setns(own, CLONE_NEWNET)

bridge = bytes(16) + attribute(3, b"br0\0") + attribute(18, attribute(1, b"bridge\0"))
number = bytes(4) + attribute(1, struct.pack("=i", 7)) + attribute(3, struct.pack("=I", other))
change("a bridge here", request(16, ECHO | CREATE | EXCL, 1, bridge), ([("RTM_NEWLINK", 1), ("ack", 1)], []))
there = bridge + attribute(28, struct.pack("=I", other))
to = os.environ.get("EXPECTED", "RTM_NEWLINK")
change("a bridge in another namespace", request(16, ECHO | CREATE | EXCL, 2, there), ([("ack", 2)], [(to, 2)]))
sender.send(request(88, 0, 3, number))
assert received(sender) == [("ack", 3)]
there = bytes(16) + attribute(3, b"br0\0") + attribute(46, struct.pack("=i", 7))
change("its deletion", request(17, ECHO, 4, there), ([("ack", 4)], [("RTM_DELLINK", 4)]))
PYTHON
uname -sr
unshare -n python3 "$folder/echo.py"
