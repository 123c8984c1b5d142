#!/bin/sh
# Whoever reads one qdisc tells everybody. RTM_GETQDISC of one qdisc, and RTM_GETTCLASS of one class, are answered by
# a multicast to RTNLGRP_TC. Seen on Linux 6.18:
# - the socket that asks gets the ack alone, as if there were nothing to read, unless it has set NLM_F_ECHO;
# - each member of the group gets an RTM_NEWQDISC, although nothing is new. Its flags are those of the event of a change
#   of parameters: none;
# - a dump (NLM_F_DUMP) is unicast, as are the reads of one filter, route or link.
# So a monitor of qdiscs cannot tell readers from changes, and "get, then compare with the event" loops for ever.
# Needs root (for a network namespace), python3, ip(8) and tc(8).
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/qdisc.py" <<'PYTHON'
import os, socket, struct, subprocess

REQUEST, ACK, ECHO, DUMP = 0x1, 0x4, 0x8, 0x300
NEWQDISC, GETQDISC, TC = 36, 38, 8  # TC: the mask of RTNLGRP_TC
ERROR, DONE = 2, 3


def opened(groups=0):
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    sock.bind((0, groups))
    return sock


def waiting(sock):
    """The types of the messages that wait. The kernel has answered when send returns."""
    types = []
    while True:
        try:
            data = sock.recv(65536, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return types
        while data:
            length, kind, flags, seq = struct.unpack_from("=IHHI", data)
            types.append((kind, flags, seq) if kind == NEWQDISC else (kind,))
            data = data[(length + 3) & ~3:]


reader, member = opened(), opened(TC)


def read(seq, flags):
    body = struct.pack("=IiIII", 0, 1, 0x10000, 0xFFFFFFFF, 0)  # struct tcmsg: lo, 1:, TC_H_ROOT
    reader.send(struct.pack("=IHHII", 16 + len(body), GETQDISC, REQUEST | ACK | flags, seq, 0) + body)
    return waiting(reader), waiting(member)


alone = eval(os.environ.get("EXPECTED", "[(ERROR,)]"))
for what, seen, expected in (
    ("one", read(1, 0), (alone, [(NEWQDISC, 0, 1)])),
    ("one, with NLM_F_ECHO", read(2, ECHO), ([(NEWQDISC, 0, 2), (ERROR,)], [(NEWQDISC, 0, 2)])),
):
    print(f"{what}: reader {seen[0]}, member {seen[1]}")
    assert seen == expected, f"the behaviour has changed, expected {expected}"

seen, told = read(3, DUMP)
print(f"a dump: reader {[kind[0] for kind in seen]}, member {told}")
assert seen[0][0] == NEWQDISC and seen[-1] == (DONE,) and told == [], "the behaviour has changed"
subprocess.run("tc qdisc replace dev lo root handle 1: pfifo limit 7".split(), check=True)
changed = waiting(member)
print(f"a change: member {changed}")
assert [kind[0] for kind in changed] == [NEWQDISC] and changed[0][1] == 0, "the behaviour has changed"
PYTHON
uname -sr
unshare -n sh -c 'ip link set lo up && tc qdisc add dev lo root handle 1: pfifo && exec python3 "$1"' sh "$folder/qdisc.py"
