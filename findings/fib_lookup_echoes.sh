#!/bin/sh
# The answer of NETLINK_FIB_LOOKUP is the datagram of the request itself, with struct fib_result_nl of its first
# message filled in. Seen on Linux 6.18:
# - the answer has the flags of the request, NLM_F_REQUEST and NLM_F_ACK among them, and no ack follows;
# - a second lookup in the datagram comes back as it was sent. It reads as a success: err is 0, and the type is 0;
# - an address without a route is err -11 (EAGAIN). The same lookup by RTM_GETROUTE is ENETUNREACH.
# So a client that counts messages or checks err alone takes lookups that were never made for made. netlink(7) has one
# line about this protocol.
# Needs root (for a network namespace), python3 and ip(8).
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/lookup.py" <<'PYTHON'
import os, socket, struct

REQUEST, ACK = 0x1, 0x4
LOCAL = 255  # RT_TABLE_LOCAL
sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 10)


def lookup(address, seq):
    """fl_addr, fl_fwmark, fl_tos, fl_scope, tb_id_in; tb_id, prefixlen, nh_sel, type, scope, err are the kernel's."""
    body = struct.pack("=4sI8Bi", socket.inet_aton(address), 0, 0, 0, LOCAL, 0, 0, 0, 0, 0, 0)
    return struct.pack("=IHHII", 16 + len(body), 0, REQUEST | ACK, seq, 0) + body


def answers(*requests):
    """(flags, sequence, type of the route, err) of each message, by datagram. The kernel has answered when send returns."""
    sock.send(b"".join(requests))
    datagrams = []
    while True:
        try:
            data = sock.recv(65536, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return datagrams
        seen = []
        while data:
            length, _kind, flags, seq = struct.unpack_from("=IHHI", data)
            seen.append((flags, seq) + struct.unpack_from("=Bxi", data, 16 + 14))
            data = data[(length + 3) & ~3:]
        datagrams.append(seen)


for what, seen, expected in (
    ("a local address", answers(lookup("127.0.0.1", 1)), [[(5, 1, 2, 0)]]),
    ("the same, twice in a datagram", answers(lookup("127.0.0.1", 2), lookup("127.0.0.1", 3)), [[(5, 2, 2, 0), (5, 3, 0, 0)]]),
    ("no route", answers(lookup("192.0.2.1", 4)), [[(5, 4, 0, int(os.environ.get("EXPECTED", "-11")))]]),
):
    print(f"{what}: {seen}")
    assert seen == expected, f"the behaviour has changed, expected {expected}"
PYTHON
uname -sr
unshare -n sh -c 'ip link set lo up && exec python3 "$1"' sh "$folder/lookup.py"
