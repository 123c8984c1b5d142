#!/bin/sh
# A datagram of a multicast group can hold several events, without NLM_F_MULTI and without NLMSG_DONE behind them: that
# flag is the only sign of a multipart message in netlink(7).
# - the qdisc of a link is replaced: RTM_DELQDISC and RTM_NEWQDISC are one datagram. A reader that takes its first
#   message for the datagram sees a qdisc go and none come;
# - a transaction of nf_tables: one datagram of all its events, up to a size, and NFT_MSG_NEWGEN in one of its own.
# Links and addresses come alone, so tests with these do not show it.
# Seen with iproute2 6.1.0 and nftables 1.0.6 on Linux 6.18. Needs root (for a network namespace), python3, ip(8), tc(8)
# and nft(8).
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/look.py" <<'PYTHON'
import os, socket, struct, subprocess

NAMES = {16: "RTM_NEWLINK", 20: "RTM_NEWADDR", 24: "RTM_NEWROUTE", 36: "RTM_NEWQDISC", 37: "RTM_DELQDISC",
         0xA00: "NEWTABLE", 0xA03: "NEWCHAIN", 0xA06: "NEWRULE", 0xA0F: "NEWGEN"}
NLM_F_MULTI = 2


def member(protocol, *groups):
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
    sock.bind((0, 0))
    for group in groups:
        sock.setsockopt(270, 1, group)
    return sock


def datagrams(sock):
    """The names of the messages in each datagram. Events are queued before the command that causes them ends."""
    seen = []
    while True:
        try:
            data = sock.recv(65536, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return seen
        names = []
        while data:
            length, kind, flags = struct.unpack_from("=IHH", data)
            assert not flags & NLM_F_MULTI
            names.append(NAMES[kind])
            data = data[(length + 3) & ~3:]
        seen.append(" ".join(names))


def expect(what, seen, *expected):
    print(f"{what}: {seen}")
    assert seen == list(expected), f"the behaviour has changed, expected {expected}"


def run(command, *rest):
    subprocess.run(command.split() + list(rest), check=True)


run("ip link add va type veth peer name vb")
run("ip link set vb up")
run("ip link set va up")
route = member(0, 4, 5)  # RTNLGRP_TC, RTNLGRP_IPV4_IFADDR
nftables = member(12, 7)  # NFNLGRP_NFTABLES
run("ip addr add 192.0.2.1/24 dev va")
run("ip addr add 192.0.2.2/24 dev va")
expect("two addresses", datagrams(route), "RTM_NEWADDR", "RTM_NEWADDR")
run("tc qdisc replace dev va root handle 1: pfifo")
expect("a qdisc", datagrams(route), os.environ.get("EXPECTED", "RTM_DELQDISC RTM_NEWQDISC"))
run("nft", "add table ip t; add chain ip t c; add rule ip t c accept; add rule ip t c accept")
expect("a transaction of nft", datagrams(nftables), "NEWTABLE NEWCHAIN NEWRULE NEWRULE", "NEWGEN")
PYTHON
ip -V
nft --version
uname -sr
timeout 50 unshare --net python3 "$folder/look.py"
