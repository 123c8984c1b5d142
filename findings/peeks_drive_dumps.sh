#!/bin/sh
# MSG_PEEK is not free of effects on a netlink socket with a dump: each read lets the kernel make the next part of the
# dump while the receive buffer is less than half full, and a peek is a read to it. So
# - a peek returns the same datagram again and again, while the queue behind it grows to the whole dump;
# - the answer is then older than its reading. A link that is made after the peeks is not in it, and as the dump had
#   ended before, NLM_F_DUMP_INTR is not set. Without a peek the dump has the link, or has the flag.
# A program that asks for the size of each datagram first (MSG_PEEK | MSG_TRUNC) does this with each.
# Seen on Linux 6.18. Needs root (for a network namespace), python3 and ip(8).
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/peek.py" <<'PYTHON'
import os, socket, struct, subprocess

DUMP_INTR = 0x10


def queued(sock):
    """The bytes in the receive queue, by /proc/net/netlink."""
    for line in open("/proc/net/netlink"):
        fields = line.split()
        if fields[1] == "0" and fields[2] == str(sock.getsockname()[0]):
            return int(fields[4])


def dump(peeks, name):
    """Whether a link that is made behind the peeks is in a dump; whether NLM_F_DUMP_INTR is; the growth of the queue."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as sock:
        sock.bind((0, 0))
        sock.setsockopt(socket.SOL_SOCKET, 33, 1 << 20)  # SO_RCVBUFFORCE
        sock.send(struct.pack("=IHHIIBBHiII", 32, 18, 0x301, 1, 0, 0, 0, 0, 0, 0, 0))
        before = queued(sock)
        assert len({sock.recv(65536, socket.MSG_PEEK) for _ in range(peeks)}) <= 1
        grown = queued(sock) > before
        subprocess.run(["ip", "link", "add", name, "type", "bridge"], check=True)
        found = flagged = False
        while True:
            data = sock.recv(65536)
            while data:
                length, kind, flags = struct.unpack_from("=IHH", data)
                flagged |= bool(flags & DUMP_INTR)
                found |= name.encode() + b"\0" in data[:length]
                if kind == 3:
                    return found, flagged, grown
                data = data[(length + 3) & ~3:]


for number in range(60):
    subprocess.run(["ip", "link", "add", f"before{number}", "type", "bridge"], check=True)
for what, seen, expected in (
    ("without a peek: found, flagged, grown", dump(0, "one"), (True, True, False)),
    ("after eight peeks", dump(8, "two"), (False, False, not os.environ.get("EXPECTED"))),
):
    print(f"{what}: {seen}")
    assert seen == expected, f"the behaviour has changed, expected {expected}"
PYTHON
uname -sr
timeout 100 unshare -n python3 "$folder/peek.py"
