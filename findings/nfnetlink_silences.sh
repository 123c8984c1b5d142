#!/bin/sh
# Batches of nf_tables that nfnetlink does not answer as expected, seen on Linux 6.18.44:
# - without NFNL_MSG_BATCH_END it acks each change with errno 0, but carries out none;
# - messages behind the first END are neither carried out nor answered;
# - one message that is shorter than struct nfgenmsg makes the whole batch silent, acks included.
# Needs root (for a network namespace), python3, and nf_tables in the kernel.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/batch.py" <<'PYTHON'
import socket, struct

REQUEST, ACK, CREATE, DUMP = 0x1, 0x4, 0x400, 0x300
sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
sock.settimeout(1)


def message(kind, flags, seq, payload):
    payload += bytes(-len(payload) % 4)
    return struct.pack("=IHHII", 16 + len(payload), kind, REQUEST | flags, seq, 0) + payload


def received():
    """(type, sequence, errno) of each message that comes until nothing does."""
    seen = []
    while True:
        try:
            data = sock.recv(65536)
        except TimeoutError:
            return seen
        while data:
            length, kind, _flags, seq = struct.unpack_from("=IHHI", data)
            errno = -struct.unpack_from("=i", data, 16)[0] if kind == 2 else None
            seen.append((kind, seq, errno))
            data = data[(length + 3) & ~3:]


def begin(seq):
    return message(16, 0, seq, struct.pack(">BBH", 0, 0, 10))


def end(seq):
    return message(17, 0, seq, struct.pack(">BBH", 0, 0, 10))


def table(name, seq):
    name += b"\0"
    attribute = struct.pack("=HH", 4 + len(name), 1) + name
    return message(0xA00, ACK | CREATE, seq, struct.pack(">BBH", 2, 0, 0) + attribute)


def tables():
    sock.send(message(0xA01, DUMP, 99, struct.pack(">BBH", 0, 0, 0)))
    return sum(1 for kind, _seq, _errno in received() if kind == 0xA00)


for what, batch, answers, made in (
    ("begin, a, end", begin(1) + table(b"a", 2) + end(3), [(2, 2, 0)], 1),
    ("begin, b", begin(1) + table(b"b", 2), [(2, 2, 0)], 1),
    ("begin, c, end, begin, d, end", begin(1) + table(b"c", 2) + end(3) + begin(4) + table(b"d", 5) + end(6), [(2, 2, 0)], 2),
    ("begin, a message without payload, e, end", begin(1) + message(0xA00, ACK, 2, b"")[:16] + table(b"e", 3) + end(4), [], 2),
):
    sock.send(batch)
    seen = received()
    there = tables()
    print(f"{what}: answers {seen}, tables {there}")
    assert (seen, there) == (answers, made), "the behaviour has changed"
PYTHON
uname -sr
unshare -n python3 "$folder/batch.py"
