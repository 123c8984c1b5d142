#!/bin/sh
# The end of a network namespace is told by RTM_DELNSID alone. A socket with NETLINK_LISTEN_ALL_NSID gets the events of
# a namespace with a number, in NETLINK_ROUTE, NETLINK_NETFILTER, NETLINK_XFRM and NETLINK_KOBJECT_UEVENT. When the
# namespace ends, the kernel takes away its number first, and then everything in it. So no event tells of the end of its
# links, addresses, tables, policies and devices. What a table of them needs: RTM_DELNSID is the end of everything with
# that number, and comes before the RTM_DELLINK of an end of a veth(4) that was left outside.
# Seen on Linux 6.18. Needs root, python3, ip(8), nft(8), and xfrm in the kernel.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/end.py" <<'PYTHON'
import ctypes, os, socket, struct, subprocess

CLONE_NEWNET = 0x40000000
libc = ctypes.CDLL(None, use_errno=True)
NAMES = {16: "RTM_NEWLINK", 17: "RTM_DELLINK", 20: "RTM_NEWADDR", 21: "RTM_DELADDR", 88: "RTM_NEWNSID", 89: "RTM_DELNSID"}


def namespace():
    libc.unshare(CLONE_NEWNET)
    made = os.open("/proc/self/ns/net", os.O_RDONLY)
    libc.setns(own, CLONE_NEWNET)
    return made


def run(command, where):
    subprocess.run(command, shell=True, check=True, pass_fds=[own], preexec_fn=lambda: libc.setns(where, CLONE_NEWNET))


def listener(protocol, *groups):
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
    sock.bind((0, 0))
    sock.setsockopt(270, 8, 1)  # NETLINK_LISTEN_ALL_NSID
    for group in groups:
        sock.setsockopt(270, 1, group)
    return sock


def event(sock, timeout=10):
    """(nsid, type) of the next; of RTM_NEWNSID and RTM_DELNSID the nsid in the message."""
    sock.settimeout(timeout)
    data, ancillary, _flags, _address = sock.recvmsg(65536, 64)
    nsid = [struct.unpack("=i", value)[0] for _level, kind, value in ancillary if kind == 8]
    kind = struct.unpack_from("=H", data, 4)[0]
    if sock is sockets["route"] and kind in (88, 89):
        nsid = [struct.unpack_from("=i", data, 24)[0]]
    return nsid[0] if nsid else None, NAMES.get(kind, kind)


def waiting(sock):
    seen = []
    while True:
        try:
            seen.append(event(sock, 0))
        except BlockingIOError:
            return seen


def told():
    seen = {name: waiting(sock) for name, sock in sockets.items()}
    return [name for name in seen if [kind for nsid, kind in seen[name] if nsid == 3 and kind != "RTM_NEWNSID"]]


def number(fd, nsid):
    """RTM_NEWNSID with NETNSA_NSID and NETNSA_FD."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as sock:
        sock.send(struct.pack("=IHHIIIHHiHHI", 36, 88, 5, 1, 0, 0, 8, 1, nsid, 8, 3, fd))
        assert struct.unpack_from("=i", sock.recv(65536), 16)[0] == 0


def expect(what, seen, expected):
    print(f"{what}: {seen}")
    assert seen == expected, f"the behaviour has changed, expected {expected}"


own = os.open("/proc/self/ns/net", os.O_RDONLY)
sockets = {
    "route": listener(0, 1, 5, 28),  # RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_NSID
    "netfilter": listener(12, 7),  # NFNLGRP_NFTABLES
    "xfrm": listener(6, 4),  # XFRMNLGRP_POLICY
    "uevent": listener(15, 1),
}
other = namespace()
number(other, 3)
run(f"""
ip link add va type veth peer name vb netns /proc/self/fd/{own}
ip addr add 192.0.2.1/24 dev va
nft add table ip t
ip xfrm policy add src 192.0.2.0/25 dst 192.0.2.128/25 dir out action block
""", other)
expect("families that tell of the namespace", told(), list(sockets))

os.close(other)
seen = [event(sockets["route"])]
while seen[-1][1] != "RTM_DELLINK":
    seen.append(event(sockets["route"]))
# Namespaces are taken down one batch after another. So when the end of a second is told, the first has gone.
second = namespace()
number(second, 4)
os.close(second)
while seen[-1] != (4, "RTM_DELNSID"):
    seen.append(event(sockets["route"]))
end = seen.index((4, "RTM_NEWNSID"))
expect("at its end NETLINK_ROUTE tells", seen[:end], [(3, os.environ.get("EXPECTED", "RTM_DELNSID")), (None, "RTM_DELLINK")])
expect("and then", seen[end:], [(4, "RTM_NEWNSID"), (4, "RTM_DELNSID")])
expect("families that tell of the namespace since", told(), [])
PYTHON
uname -sr
unshare -n python3 "$folder/end.py"
