#!/bin/sh
# The messages in dumps of the generic netlink family "netdev" (NETDEV_CMD_DEV_GET, since Linux 6.3) do not have the
# flag NLM_F_MULTI, although netlink(7) requires it for multipart messages. Only NLMSG_DONE ends such a dump. A
# reader that takes a message without the flag for the whole answer sees one device, and leaves the rest on the
# socket. The dumps of nlctrl have the flag. Seen on Linux 6.18.44. Needs root (for a network namespace) and
# python3.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/dump.py" <<'PYTHON'
import socket, struct

REQUEST, MULTI, ACK, DUMP = 0x1, 0x2, 0x4, 0x300


def attribute(kind, value):
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def ask(sock, family, flags, command, attributes=b""):
    payload = struct.pack("=BBH", command, 1, 0) + attributes
    sock.send(struct.pack("=IHHII", 16 + len(payload), family, flags, 1, 0) + payload)


def messages(data):
    while data:
        length, kind, flags = struct.unpack_from("=IHH", data)
        yield kind, flags, data[16:length]
        data = data[(length + 3) & ~3:]


def number(sock, name):
    ask(sock, 16, REQUEST, 3, attribute(2, name + b"\0"))
    kind, _flags, payload = next(messages(sock.recv(65536)))
    rest = payload[4:]
    while kind == 16 and rest:
        length, attr = struct.unpack_from("=HH", rest)
        if attr == 1:
            return struct.unpack_from("=H", rest, 4)[0]
        rest = rest[(length + 3) & ~3:]


def dump(sock, family, command):
    """The flags of its messages, and what ends it."""
    ask(sock, family, REQUEST | ACK | DUMP, command)
    seen = []
    while True:
        for kind, flags, _payload in messages(sock.recv(65536)):
            if kind in (2, 3):
                return seen, kind
            seen.append(flags & MULTI)


sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 16)
sock.settimeout(5)
netdev = number(sock, b"netdev")
if netdev is None:
    print("skipped: this kernel has no netdev family")
    raise SystemExit
for name, (seen, end) in (("nlctrl", dump(sock, 16, 3)), ("netdev", dump(sock, netdev, 1))):
    print(name, len(seen), "messages, NLM_F_MULTI in", sum(1 for f in seen if f), "of them, ended by type", end)
    assert len(seen) > 1 and end == 3
    assert all(seen) if name == "nlctrl" else not any(seen), "the behaviour has changed"
PYTHON
uname -sr
unshare -n sh -c 'ip link add one type bridge && ip link add two type bridge && exec python3 "$1"' sh "$folder/dump.py"
