#!/bin/sh
# The cookie of a network namespace, SO_NETNS_COOKIE of any socket, is the number that the ioctl NS_GET_ID gives for
# its file under /proc. So the namespace of a socket can be found in /proc without SIOCGSKNS and its capability, and
# two numbers that are documented apart can be compared. The numbers are not those of network namespaces alone: all
# kinds of namespaces count in one sequence, so a cookie can be the next after the id of a mount namespace. Each
# processor takes numbers from a range of its own. So a larger number does not mean a younger namespace.
# Seen on Linux 6.18, where NS_GET_ID is new. An older kernel refuses it, and the script is skipped.
# Needs root, python3, and two processors for the last check.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/ids.py" <<'PYTHON'
import ctypes, fcntl, os, socket, struct

CLONE_NEWNS, CLONE_NEWNET = 0x00020000, 0x40000000
NS_GET_ID = 2 << 30 | 8 << 16 | 0xB7 << 8 | 13  # _IOR(NSIO, 13, __u64)
SO_NETNS_COOKIE = 71
libc = ctypes.CDLL(None, use_errno=True)


def cookie():
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as sock:
        return struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8))[0]


def identity(kind):
    fd = os.open(f"/proc/self/ns/{kind}", os.O_RDONLY)
    number = bytearray(8)
    fcntl.ioctl(fd, NS_GET_ID, number)
    os.close(fd)
    return struct.unpack("=Q", number)[0]


def expect(what, seen, expected):
    print(f"{what}: {seen}")
    assert seen == expected, f"the behaviour has changed, expected {expected}"


try:
    identity("net")
except OSError as error:
    print("skipped: this kernel has no NS_GET_ID:", error)
    raise SystemExit
processors = sorted(os.sched_getaffinity(0))
os.sched_setaffinity(0, processors[:1])
expect("cookie - id of the first network namespace", cookie() - identity("net"), int(os.environ.get("EXPECTED", "0")))
differences, gaps = set(), set()
for _ in range(20):
    libc.unshare(CLONE_NEWNET)
    differences.add(cookie() - identity("net"))
    libc.unshare(CLONE_NEWNS)
    gaps.add(identity("mnt") - cookie())
expect("cookie - id of new ones", differences, {0})
# Other processes can make namespaces between the two, but hardly each time.
expect("a mount namespace after it had the next number", 1 in gaps, True)
if len(processors) < 2:
    print("skipped: one processor")
    raise SystemExit
cookies = []
for processor in processors[:2] * 2:
    os.sched_setaffinity(0, [processor])
    libc.unshare(CLONE_NEWNET)
    cookies.append(cookie())
print("made on two processors in turn:", cookies)
expect("in order", cookies == sorted(cookies), False)
PYTHON
uname -sr
exec python3 "$folder/ids.py"
