#!/bin/sh
# NETLINK_FIB_LOOKUP answers with the datagram of the request itself. Of several messages in it only the first is looked
# up. The others come back as they were sent, with their sequence numbers, with error 0, and with an empty result: they look
# like answers. NETLINK_ROUTE answers each message of a datagram. Seen on Linux 6.18.44.
# Needs root (for a network namespace), iproute2 and python3.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/lookup.py" <<'PYTHON'
import socket, struct

REQUEST = 0x1
sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 10)
sock.settimeout(1)
# struct fib_result_nl: address, mark, tos, scope, tb_id_in; results: tb_id, prefixlen, nh_sel, type, scope, err
RESULT = "=4sI8Bi"


def lookup(seq, address):
    payload = struct.pack(RESULT, socket.inet_aton(address), *([0] * 10))
    return struct.pack("=IHHII", 16 + len(payload), 0, REQUEST, seq, 0) + payload


def answers():
    """(sequence, type of the route found, error) of each message that comes until nothing does."""
    seen = []
    while True:
        try:
            data = sock.recv(65536)
        except TimeoutError:
            return seen
        while data:
            length, _kind, _flags, seq = struct.unpack_from("=IHHI", data)
            *_, kind, _scope, error = struct.unpack_from(RESULT, data, 16)
            seen.append((seq, kind, error))
            data = data[length:]


RTN_LOCAL, NONE = 2, 0
for what, datagram, expected in (
    ("one", lookup(1, "127.0.0.1"), [(1, RTN_LOCAL, 0)]),
    ("two", lookup(2, "127.0.0.1") + lookup(3, "127.0.0.1"), [(2, RTN_LOCAL, 0), (3, NONE, 0)]),
):
    sock.send(datagram)
    seen = answers()
    print(f"{what}: (sequence, type, error) {seen}")
    assert seen == expected, "the behaviour has changed"
PYTHON
uname -sr
unshare -n sh -c "ip link set lo up && exec python3 '$folder/lookup.py'"
