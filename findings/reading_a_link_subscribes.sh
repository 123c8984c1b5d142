#!/bin/sh
# A read changes which events a netlink socket gets. NETLINK_LISTEN_ALL_NSID delivers events of the namespaces that
# have a number (nsid) in the namespace of the socket. The kernel numbers a namespace on its own when it puts the
# attribute IFLA_LINK_NETNSID into a message, and a request for the link of a veth(4) does that, even if an
# unprivileged user sends it:
# - a veth comes into a namespace as the peer of a new one: its RTM_NEWLINK lacks its peer's namespace, and listeners
#   get no events of that namespace;
# - any process there runs `ip link show dev vb`: RTM_NEWNSID is sent to all listeners;
# - from then on those with NETLINK_LISTEN_ALL_NSID get the events of the other namespace.
# So a program that has listed the links hears more than the same program a moment before, and another program's
# `ip link` is enough. Seen on Linux 6.18.
# Needs root, python3, ip(8) and setpriv(1).
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/read.py" <<'PYTHON'
import ctypes, os, socket, struct, subprocess

CLONE_NEWNET = 0x40000000
libc = ctypes.CDLL(None, use_errno=True)
NAMES = {16: "RTM_NEWLINK", 20: "RTM_NEWADDR", 88: "RTM_NEWNSID"}


def run(command, namespace=None):
    before = (lambda: libc.setns(namespace, CLONE_NEWNET)) if namespace else None
    return subprocess.run(command.split(), check=True, capture_output=True, pass_fds=[other, own], preexec_fn=before)


def events():
    """(nsid, message) of what has arrived. Events are queued before the command that causes them ends."""
    seen = []
    while True:
        try:
            data, ancillary, _flags, _address = listener.recvmsg(65536, 64, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return seen
        nsid = [struct.unpack("=i", value)[0] for _level, kind, value in ancillary if kind == 8]
        seen.append((nsid[0] if nsid else None, NAMES.get(struct.unpack_from("=H", data, 4)[0])))


own = os.open("/proc/self/ns/net", os.O_RDONLY)
libc.unshare(CLONE_NEWNET)
other = os.open("/proc/self/ns/net", os.O_RDONLY)
libc.setns(own, CLONE_NEWNET)
listener = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
listener.bind((0, 0))
listener.setsockopt(270, 8, 1)  # NETLINK_LISTEN_ALL_NSID
for group in (1, 5, 28):  # RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_NSID
    listener.setsockopt(270, 1, group)


def expect(what, expected):
    seen = events()
    print(f"{what}: {seen}")
    assert seen == expected, f"the behaviour has changed, expected {expected}"


run(f"ip link add va type veth peer name vb netns /proc/self/fd/{own}", other)
expect("a veth comes", [(None, "RTM_NEWLINK")])
run("ip addr add 192.0.2.1/24 dev va", other)
expect("an address in the other namespace", [])
run("setpriv --reuid 65534 --clear-groups ip link show dev lo")
expect("an unprivileged user reads another link", [])
run("setpriv --reuid 65534 --clear-groups ip link show dev vb")
expect("an unprivileged user reads the veth", [(None, os.environ.get("EXPECTED", "RTM_NEWNSID"))])
run("ip addr add 192.0.2.2/24 dev va", other)
expect("another address in the other namespace", [(0, "RTM_NEWADDR")])
PYTHON
echo "kernel $(uname -r), $(ip -V)"
unshare -n python3 "$folder/read.py"
