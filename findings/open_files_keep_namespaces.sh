#!/bin/sh
# namespaces(7) says what keeps a network namespace: processes, descriptors and bind mounts of its file. Sockets do as
# well, and so do files that look harmless:
#   keeps:         an open /proc/net/dev, tcp, netlink, snmp and most others there; an open /dev/net/tun, even before
#                  TUNSETIFF
#   does not keep: an open /proc/net/psched, the directory /proc/PID/net, a file of /proc/sys/net, a mount of sysfs made
#                  in the namespace, or an open file in it. These stay behind: /sys/class/net is empty, and a read
#                  of the file is ENODEV
# So a program that reads statistics of a container by a descriptor that it leaves open keeps the container's network,
# with its ports and addresses, while `ip netns` and /proc/PID/ns show nothing.
# Seen on Linux 6.18. Needs root and python3.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/keep.py" <<'PYTHON'
import ctypes, os, socket, struct, sys

CLONE_NEWNET = 0x40000000
libc = ctypes.CDLL(None, use_errno=True)
mounted = sys.argv[1].encode()


def call(result):
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def namespace(opened=lambda: None):
    """A namespace with the number 5, and what was opened in it. Nothing else keeps it."""
    call(libc.unshare(CLONE_NEWNET))
    inside = os.open("/proc/self/ns/net", os.O_RDONLY)
    held = opened()
    call(libc.setns(own, CLONE_NEWNET))
    nsid = struct.pack("=IHHIIIHHiHHI", 36, 88, 5, 1, 0, 0, 8, 1, next(numbers), 8, 3, inside)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as sock:
        sock.send(nsid)
        assert struct.unpack_from("=i", sock.recv(65536), 16)[0] == 0
    os.close(inside)
    return held


def ended():
    """The numbers of the namespaces that have ended. The kernel ends them in batches: at the second, the first is over."""
    seen = set()
    for _ in range(2):
        namespace()
        while last not in seen:
            data = listener.recv(65536)
            if struct.unpack_from("=H", data, 4)[0] == 89:  # RTM_DELNSID
                seen.add(struct.unpack_from("=i", data, 24)[0])
    return seen


def count():
    global last
    last = 100
    while True:
        last += 1
        yield last


def expect(what, seen, expected):
    print(f"{what}: {seen}")
    assert seen == expected, f"the behaviour has changed, expected {expected}"


def kept(what, opened, expected, close=os.close):
    held = namespace(opened)
    number = last
    expect(what, "keeps" if number not in ended() else "does not keep", expected)
    close(held)
    if expected == "keeps":
        expect("  and after it was closed", number in ended(), True)


def sysfs():
    call(libc.mount(b"none", mounted, b"sysfs", 0, None))


def of_sysfs():
    sysfs()
    return os.open(mounted + b"/class/net/lo/mtu", os.O_RDONLY)


def leave(held):
    if held is not None:
        try:
            os.read(held, 10)
        except OSError as error:
            expect("  a read of it", error.strerror, "No such device")
        os.close(held)
    expect("  links in it", os.listdir(mounted + b"/class/net"), [])
    call(libc.umount2(mounted, 0))


numbers = count()
own = os.open("/proc/self/ns/net", os.O_RDONLY)
listener = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
listener.bind((0, 0))
listener.setsockopt(270, 1, 28)  # RTNLGRP_NSID
listener.settimeout(30)
for path, expected in (
    ("/proc/self/net/dev", os.environ.get("EXPECTED", "keeps")),
    ("/proc/self/net/tcp", "keeps"),
    ("/proc/self/net/netlink", "keeps"),
    ("/proc/self/net/snmp", "keeps"),
    ("/dev/net/tun", "keeps"),
    ("/proc/self/net/psched", "does not keep"),
    ("/proc/self/net", "does not keep"),
    ("/proc/sys/net/ipv4/ip_forward", "does not keep"),
):
    if os.path.exists(path):
        kept(path, lambda: os.open(path, os.O_RDONLY), expected)
kept("a mount of sysfs", sysfs, "does not keep", leave)
kept("an open file of sysfs", of_sysfs, "does not keep", leave)
PYTHON
uname -sr
mkdir "$folder/sys"
unshare --mount --net timeout 100 python3 "$folder/keep.py" "$folder/sys"
