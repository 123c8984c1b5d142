#!/bin/sh
# The end of an xfrm policy is told in three ways. A table that is kept by XFRM_MSG_DELPOLICY keeps for ever what ended
# in the other two. Seen on Linux 6.18:
#   ip xfrm policy delete                         XFRM_MSG_DELPOLICY
#   its lifetime ends (limit time-hard 1)         XFRM_MSG_POLEXPIRE with hard 1, and no DELPOLICY. That is not in
#                                                 the group of policies (XFRMNLGRP_POLICY), but in XFRMNLGRP_EXPIRE
#   ip xfrm policy flush                          one XFRM_MSG_FLUSHPOLICY for all; none if there was none
# A soft limit is XFRM_MSG_POLEXPIRE with hard 0, and ends nothing. And XFRM_MSG_UPDPOLICY is told of a policy that is
# new, too, if it was sent as an update.
# Needs root (for a network namespace), python3, ip(8), and xfrm in the kernel; seen with iproute2 6.1.0.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/policies.py" <<'PYTHON'
import os, socket, struct, subprocess

XFRM, SOL_NETLINK, ADD_MEMBERSHIP = 6, 270, 1
EXPIRE, POLICY = 2, 4  # XFRMNLGRP_
NAMES = {19: "NEWPOLICY", 20: "DELPOLICY", 25: "UPDPOLICY", 27: "POLEXPIRE", 29: "FLUSHPOLICY"}


def listener(group):
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, XFRM)
    sock.bind((0, 0))
    sock.setsockopt(SOL_NETLINK, ADD_MEMBERSHIP, group)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 10, 0))
    return sock


def event(sock, flags=0):
    data = sock.recv(65536, flags)
    (kind,) = struct.unpack_from("=H", data, 4)
    if NAMES[kind] != "POLEXPIRE":
        return NAMES[kind]
    # struct xfrm_userpolicy_info, hard
    return f"POLEXPIRE {data[16 + 168]}"


def events(sock):
    seen = []
    while True:
        try:
            seen.append(event(sock, socket.MSG_DONTWAIT))
        except BlockingIOError:
            return seen


def policy(change, last="", limit=""):
    to = f"src 127.0.0.1 dst 127.0.0.{last} dir out" if last else ""
    template = "tmpl proto esp mode transport" if change in ("add", "update") else ""
    subprocess.run(f"ip xfrm policy {change} {to} {limit} {template}", shell=True, check=True)


def expect(what, seen, expected):
    print(f"{what}: {seen}")
    assert seen == expected, f"the behaviour has changed, expected {expected}"


def left():
    listed = subprocess.run(["ip", "xfrm", "policy"], stdout=subprocess.PIPE, text=True, check=True).stdout
    return sorted(line.split()[3] for line in listed.split("\n") if line.startswith("src"))


policies, ends = listener(POLICY), listener(EXPIRE)
policy("add", 2)
policy("delete", 2)
expect("added, deleted", events(policies), ["NEWPOLICY", "DELPOLICY"])
policy("add", 3, "limit time-soft 1")
expect("a soft limit, group of expiry", event(ends), "POLEXPIRE 0")
policy("add", 4, "limit time-hard 1")
expect("a hard limit, group of expiry", event(ends), os.environ.get("EXPECTED", "POLEXPIRE 1"))
expect("left", left(), ["127.0.0.3/32"])
expect("group of policies", events(policies), ["NEWPOLICY", "NEWPOLICY"])
policy("update", 5)
policy("flush")
policy("flush")
expect("an update without a policy, flushed twice", events(policies), ["UPDPOLICY", "FLUSHPOLICY"])
expect("left", left(), [])
expect("group of expiry", events(ends), [])
PYTHON
uname -sr
timeout 50 unshare --net python3 "$folder/policies.py"
