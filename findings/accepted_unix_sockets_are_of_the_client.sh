#!/bin/sh
# accept(2) of a UNIX socket gives a socket of the network namespace of the client, not of the listener's: connect(2)
# makes it. A path leads to the same socket from every network namespace of a mount namespace, so a daemon whose socket
# is mounted into containers holds sockets of their networks:
# - SO_NETNS_COOKIE, SIOCGSKNS and the requests of netdevice(7) on the accepted socket are about the client's network;
# - the connection keeps that namespace as long as the daemon does not close its end, also when all processes in it, and
#   their ends, are gone;
# - ss(8) -x and /proc/net/unix show the daemon's end in the client's namespace and not in its own.
# Seen on Linux 6.18. Needs root (for network namespaces), python3, ip(8) and ss(8).
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/accept.py" <<'PYTHON'
import ctypes, fcntl, os, socket, struct, subprocess, sys

CLONE_NEWNET = 0x40000000
SO_NETNS_COOKIE, SIOCGIFFLAGS, SIOCGSKNS = 71, 0x8913, 0x894C
libc = ctypes.CDLL(None, use_errno=True)


def cookie(sock):
    return struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8))[0]


def listed(sock):
    """Whether /proc/net/unix and ss(8) have the socket, in the namespace of this process."""
    inode = str(os.fstat(sock.fileno()).st_ino)
    known = subprocess.run(["ss", "-Hxa"], capture_output=True, text=True, check=True).stdout
    return inode in [line.split()[6] for line in open("/proc/self/net/unix")], inode in known.split()


def loopback_is_up(sock):
    return struct.unpack_from("=H", fcntl.ioctl(sock, SIOCGIFFLAGS, struct.pack("=16s24x", b"lo")), 16)[0] & 1 == 1


def ends(number):
    """Whether a namespace ends: RTM_DELNSID of its number. Without a number, whether any does within a second."""
    told.settimeout(1 if number is None else 20)
    try:
        while True:
            data = told.recv(65536)
            if struct.unpack_from("=H", data, 4)[0] == 89:
                return True
    except TimeoutError:
        return False


def expect(what, seen, expected):
    print(f"{what}: {seen}")
    assert seen == expected, f"the behaviour has changed, expected {expected}"


subprocess.run("ip link set lo up".split(), check=True)
home = os.open("/proc/self/ns/net", os.O_RDONLY)
path = sys.argv[1] + "/socket"
listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
listener.bind(path)
listener.listen()
own = cookie(listener)

ready, left = os.pipe(), os.pipe()
child = os.fork()
if child == 0:
    libc.unshare(CLONE_NEWNET)
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.connect(path)
    os.write(ready[1], struct.pack("=Q", cookie(client)))
    os.read(left[0], 1)
    os._exit(0)
client = struct.unpack("=Q", os.read(ready[0], 8))[0]
accepted, _address = listener.accept()
expect("the client has another namespace", client != own, True)
expect("the accepted socket is of", {own: "the listener's", client: "the client's"}[cookie(accepted)],
       os.environ.get("EXPECTED", "the client's"))
namespace = fcntl.ioctl(accepted, SIOCGSKNS)
expect("SIOCGSKNS is the client's", os.readlink(f"/proc/self/fd/{namespace}") == os.readlink(f"/proc/{child}/ns/net"), True)
expect("SIOCGIFFLAGS: the loopback is up: listener, accepted", (loopback_is_up(listener), loopback_is_up(accepted)), (True, False))
expect("listed in the listener's namespace: listener", listed(listener), (True, True))
expect("listed in the listener's namespace: accepted", listed(accepted), (False, False))
libc.setns(namespace, CLONE_NEWNET)
expect("listed in the client's namespace: accepted", listed(accepted), (True, True))
libc.setns(home, CLONE_NEWNET)

# The namespace gets a number here, so that its end is told.
told = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
told.bind((0, 0))
told.setsockopt(270, 1, 28)  # RTNLGRP_NSID
with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as sock:
    body = bytes(4) + struct.pack("=HHi", 8, 1, 7) + struct.pack("=HHI", 8, 3, namespace)  # NETNSA_NSID, NETNSA_FD
    sock.send(struct.pack("=IHHII", 16 + len(body), 88, 5, 1, 0) + body)
    assert struct.unpack_from("=i", sock.recv(65536), 16)[0] == 0
os.close(namespace)
os.write(left[1], b"x")
os.waitpid(child, 0)
expect("its process has ended; the peer has closed", accepted.recv(1), b"")
expect("the namespace ends", ends(None), False)
accepted.close()
expect("the namespace ends when the accepted socket is closed", ends(7), True)
PYTHON
uname -sr
timeout 50 unshare --net python3 "$folder/accept.py" "$folder"
