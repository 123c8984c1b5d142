#!/bin/sh
# The errors of ipset over netlink are no errnos: those of its own begin at 4097 (IPSET_ERR_PRIVATE), above 4095, which
# is the greatest errno of Linux, and strerror(3) knows none of them. Standard tools print "Unknown error 4103". What a
# client of nfnetlink meets here besides:
# - 4103 (IPSET_ERR_EXIST) says that an element is there (ADD), and that it is not (DEL, TEST): the answer "no" of TEST
#   is an error;
# - ADD of what is there and DEL of what is not are refused only with NLM_F_EXCL;
# - an ADD of several elements stops at the first that is refused, and keeps those before it;
# - the copy of the request in that error is not what was sent: the kernel has written the line number of the element
#   (IPSET_ATTR_LINENO) into it.
# Seen with ipset 7.17 (protocol 7) on Linux 6.18. Needs root (for a network namespace), ipset(8) and python3.
set -eu
if ! command -v ipset >/dev/null; then
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends ipset >/dev/null
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/ask.py" <<'PYTHON'
import os, socket, struct, subprocess

ADD, DEL, TEST = 9, 10, 11
ACK, EXCL = 5, 0x205
NESTED, NET_BYTEORDER = 0x8000, 0x4000


def attribute(kind, value):
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def line(number):
    return attribute(9, struct.pack("=I", number))  # IPSET_ATTR_LINENO


def element(address, number=None):
    address = attribute(NESTED | 1, attribute(NET_BYTEORDER | 1, socket.inet_aton(address)))
    return attribute(NESTED | 7, address + (b"" if number is None else line(number)))  # IPSET_ATTR_DATA


def asked(command, body, flags=ACK):
    """The error, and whether its copy of the request is what was sent."""
    body = struct.pack("=BBH", 2, 0, 0) + attribute(1, b"\7") + attribute(2, b"s\0") + body
    sent = struct.pack("=IHHII", 16 + len(body), 6 << 8 | command, flags, 1, 0) + body
    sock.send(sent)
    data = sock.recv(65536)
    assert struct.unpack_from("=H", data, 4)[0] == 2
    return -struct.unpack_from("=i", data, 16)[0], data[20:] == sent or data[20:]


def members():
    text = subprocess.run(["ipset", "list", "s"], capture_output=True, text=True, check=True).stdout
    return sorted(text.split("Members:\n")[1].split())


def expect(what, seen, expected):
    print(f"{what}: {seen}")
    assert seen == expected, f"the behaviour has changed, expected {expected}"


sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
sock.bind((0, 0))
subprocess.run("ipset create s hash:ip && ipset add s 192.0.2.1", shell=True, check=True)
expect("strerror of 4103", os.strerror(4103), "Unknown error 4103")
exist = int(os.environ.get("EXPECTED", "4103"))
expect("ADD of a member", asked(ADD, element("192.0.2.1"))[0], 0)
expect("ADD of a member, NLM_F_EXCL", asked(ADD, element("192.0.2.1"), EXCL), (exist, True))
expect("DEL of another", asked(DEL, element("192.0.2.9"))[0], 0)
expect("DEL of another, NLM_F_EXCL", asked(DEL, element("192.0.2.9"), EXCL), (4103, True))
expect("TEST of a member", asked(TEST, element("192.0.2.1"))[0], 0)
expect("TEST of another", asked(TEST, element("192.0.2.9"))[0], 4103)

names = ["192.0.2.2", "192.0.2.1", "192.0.2.3"]
several = attribute(NESTED | 8, b"".join(element(name, 70 + at) for at, name in enumerate(names)))  # IPSET_ATTR_ADT
error, copy = asked(ADD, line(0) + several, EXCL)
expect("ADD of a new element, a member, a new element", error, 4103)
expect("members", members(), ["192.0.2.1", "192.0.2.2"])
# Behind struct nlmsghdr and nfgenmsg are the protocol, the name, and the line.
expect("line in the copy of the request, which was sent as 0", struct.unpack_from("=HHI", copy, 16 + 4 + 8 + 8), (8, 9, 71))
PYTHON
ipset --version
uname -sr
timeout 50 unshare --net python3 "$folder/ask.py"
