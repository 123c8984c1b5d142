#!/bin/sh
# A uevent whose sender is the kernel (port id 0) need not be the kernel's. Since Linux 4.18 the kernel takes messages
# on NETLINK_KOBJECT_UEVENT, and sends their payload, unchecked, to the members of the group in that network namespace,
# with a SEQNUM behind it. The sender needs CAP_SYS_ADMIN in the user namespace that owns the network namespace, so the
# first process of `unshare -Urn` may do it. It is how a container manager hands devices on. A reader sees:
# - port id 0 and the group, as from the kernel. Only the process id in the credentials (SO_PASSCRED) differs: those of
#   the kernel are 0;
# - a payload of any form, which need not begin with "add@", and can have a SEQNUM of its own.
# The datagram itself has no netlink header, in either case, but the message to the kernel needs one.
# Seen on Linux 6.18. Needs python3, ip(8) and unshare(1), but not root.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/send.py" <<'PYTHON'
import ctypes, os, re, select, socket, struct, subprocess

CLONE_NEWNET = 0x40000000
libc = ctypes.CDLL(None, use_errno=True)
SO_PASSCRED = 16


def uevents():
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 15)
    sock.bind((0, 1))
    sock.settimeout(10)
    sock.setsockopt(socket.SOL_SOCKET, SO_PASSCRED, 1)
    return sock


def read(sock):
    """The address of the sender, whether its process id is this one, or 0, and the payload."""
    data, ancillary, _flags, address = sock.recvmsg(65536, 64)
    pid = struct.unpack_from("=i", ancillary[0][2])[0]
    return address, {os.getpid(): "own", 0: "0"}[pid], re.sub(rb"SEQNUM=\d+\0$", b"SEQNUM=N\0", data)


def drained(sock):
    """Whether there was one more."""
    return bool(select.select([sock], [], [], 0)[0] and sock.recv(65536))


def expect(what, seen, expected):
    print(f"{what}: {seen}")
    assert seen == expected, f"the behaviour has changed, expected {expected}"


own = os.open("/proc/self/ns/net", os.O_RDONLY)
libc.unshare(CLONE_NEWNET)
elsewhere = uevents()
libc.setns(own, CLONE_NEWNET)
listener = uevents()
# All uevents of the links are queued before the command ends.
subprocess.run("ip link add va type veth peer name vb".split(), check=True)
address, pid, data = read(listener)
expect("the kernel's", (address, pid, data[:5]), ((0, 1), "0", b"add@/"))
while drained(listener):
    pass
with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 15) as sock:
    for payload in b"add@/devices/none\0ACTION=add\0SEQNUM=5\0", b"any bytes":
        sock.send(struct.pack("=IHHII", 16 + len(payload), 16, 5, 1, 0) + payload)
        expect("ack", struct.unpack_from("=i", sock.recv(4096), 16)[0], 0)
        expect("a program's", read(listener), ((int(os.environ.get("EXPECTED", "0")), 1), "own", payload + b"SEQNUM=N\0"))
expect("in another network namespace", drained(elsewhere), False)
PYTHON
uname -sr
timeout 50 unshare --user --map-root-user --net python3 "$folder/send.py"
