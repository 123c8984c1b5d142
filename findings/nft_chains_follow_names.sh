#!/bin/sh
# An ingress chain of nft(8) belongs to the name of a device, not to the device (new in Linux 6.16):
# - the chain stays when its device is deleted, and takes the next device of that name;
# - it leaves a device that is renamed, and takes another device that is given the name.
# The kernel tells of none of this: no event of nf_tables is sent, the generation stays, and `nft list ruleset` shows
# the same text, whether the chain sees packets or not. So a rename of devices, as at boot, or a container that is
# replaced changes what a chain filters, and no reader or monitor of the rule set sees it.
# Seen with nftables 1.0.6 on Linux 6.18. Needs root (for a network namespace), python3, ip(8) and nft(8).
set -eu
newest=$(printf '%s\n' 6.16 "$(uname -r)" | sort -V | tail -1)
[ "$newest" = "$(uname -r)" ] || { echo "skipped: Linux $(uname -r) is older than 6.16"; exit 0; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/names.py" <<'PYTHON'
import os, re, socket, subprocess


def run(*commands):
    for command in commands:
        done = subprocess.run(command, shell=True, check=True, capture_output=True, text=True)
    return done.stdout


def counted(sender):
    """How many of three frames that the device sends are counted by the chain: its peer receives them."""
    packets = lambda: int(re.search(r"packets (\d+)", run("nft list ruleset"))[1])
    before = packets()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.bind((sender, 0))
        for _ in range(3):
            sock.send(b"\xff" * 12 + b"\x88\xb5" + bytes(50))
    return packets() - before


def ruleset():
    return re.sub(r"packets \d+ bytes \d+", "", run("nft list ruleset"))


def expect(what, seen, expected):
    print(f"{what}: {seen}")
    assert seen == expected, f"the behaviour has changed, expected {expected}"


def pair(one, other):
    return (f"ip link add {one} type veth peer name {other}", f"ip link set {one} up", f"ip link set {other} up")


# Frames of IPv6 would be counted as well. This is the setting of this namespace.
run("echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6", *pair("va", "vb"), "nft add table netdev t",
    "nft 'add chain netdev t c { type filter hook ingress device va priority 0; }'", "nft add rule netdev t c counter")
before = ruleset()
events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
events.bind((0, 0))
events.setsockopt(270, 1, 7)  # NETLINK_ADD_MEMBERSHIP, NFNLGRP_NFTABLES
expect("frames to va that are counted", counted("vb"), 3)
run("ip link del va", *pair("va", "vb"))
expect("to a new va", counted("vb"), int(os.environ.get("EXPECTED", "3")))
run("ip link set va down", "ip link set va name vc", "ip link set vc up")
expect("to the same device, which is vc now", counted("vb"), 0)
run("ip link set vb down", "ip link set vb name va", "ip link set va up")
expect("to its peer, which is va now", counted("vc"), 3)
expect("the rule set is the same", ruleset() == before, True)
try:
    expect("an event of nf_tables", len(events.recv(65536, socket.MSG_DONTWAIT)), 0)
except BlockingIOError:
    print("no event of nf_tables")
PYTHON
uname -sr
timeout 100 unshare -n python3 "$folder/names.py"
