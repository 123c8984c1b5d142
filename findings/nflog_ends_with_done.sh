#!/bin/sh
# What the kernel sends for `log group N` of nft(8) (NFNL_SUBSYS_ULOG of NETLINK_NETFILTER) looks like the end of a
# dump:
# - packets share a datagram, without NLM_F_MULTI, and behind two or more of them comes NLMSG_DONE. A packet that comes
#   alone has none. No dump was asked for, and the stream goes on: a loop that ends at NLMSG_DONE, as that of
#   mnl_cb_run() does by its result 0, ends with the first two packets. The sequence number of all is 0;
# - a datagram is sent when its buffer of 4 kB is full, or a second after the first packet: logs come late where there
#   are few. The rule's `queue-threshold 1` sends each packet at once, alone.
# nft(8) has queue-threshold without a default. Here the delay is shown by the order: a packet that is logged later, by
# a rule with queue-threshold 1 to another group, arrives first.
# Seen with nftables 1.0.6 on Linux 6.18. Needs root (for a network namespace), python3, ip(8) and nft(8).
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/log.py" <<'PYTHON'
import os, socket, struct, subprocess

NETFILTER, NFNL_SUBSYS_ULOG, NFULNL_MSG_PACKET, NFULNL_MSG_CONFIG = 12, 4, 0, 1
NLM_F_MULTI, NLMSG_DONE = 2, 3
NAMES = {NFNL_SUBSYS_ULOG << 8 | NFULNL_MSG_PACKET: "packet", NLMSG_DONE: "NLMSG_DONE"}
RULES = """table ip t {
  chain c { type filter hook output priority 0; udp dport 4001 log group 1; udp dport 4002 log group 2 queue-threshold 1; }
}"""


def attribute(kind, value):
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def configure(group, attribute):
    payload = struct.pack("!BBH", socket.AF_INET, 0, group) + attribute
    sock.send(struct.pack("=IHHII", 16 + len(payload), NFNL_SUBSYS_ULOG << 8 | NFULNL_MSG_CONFIG, 5, 7, 0) + payload)
    assert struct.unpack_from("=i", sock.recv(4096), 16)[0] == 0


def received():
    """The messages of one datagram: group and name, or the name alone."""
    data = sock.recv(65536)
    seen = []
    while data:
        length, kind, flags, seq, _port = struct.unpack_from("=IHHII", data)
        assert (flags & NLM_F_MULTI, seq) == (0, 0)
        (group,) = struct.unpack_from("!H", data, 18)
        seen.append(f"{NAMES[kind]} of group {group}" if kind != NLMSG_DONE else NAMES[kind])
        data = data[length + 3 & ~3 :]
    return seen


def send(port, count):
    for _ in range(count):
        udp.sendto(b"text", ("127.0.0.1", port))


def expect(what, seen, expected):
    print(f"{what}: {seen}")
    assert seen == expected, f"the behaviour has changed, expected {expected}"


subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
subprocess.run(["nft", "-f", "-"], input=RULES, text=True, check=True)
sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETFILTER)
sock.settimeout(10)
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for group in 1, 2:
    configure(group, attribute(1, b"\1"))  # NFULNL_CFG_CMD_BIND
    configure(group, attribute(2, struct.pack("!IBx", 100, 2)))  # 100 bytes of each packet
send(4001, 2)
send(4002, 2)
expect("first", received(), ["packet of group 2"])
expect("second", received(), ["packet of group 2"])
end = [os.environ.get("EXPECTED", "NLMSG_DONE")]
expect("after a second", received(), ["packet of group 1"] * 2 + end)
send(4001, 1)
expect("one packet, after a second", received(), ["packet of group 1"])
PYTHON
nft --version
uname -sr
timeout 50 unshare --net python3 "$folder/log.py"
