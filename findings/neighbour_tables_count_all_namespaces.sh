#!/bin/sh
# A neighbour table is one for the machine. rtnetlink dumps the entries of a namespace, and shows the size and the
# limits of the table (RTM_GETNEIGHTBL, ip ntable) of all of them together:
# - ndtc_entries in a namespace without a neighbour grows with each neighbour of any other namespace;
# - gc_thresh1 to 3, at which the kernel forgets neighbours and then refuses new ones, are shown in each namespace. A
#   change in another than the first is ENOENT, whatever the capabilities, and /proc/sys/net/ipv4/neigh/default, where
#   sysctl(8) would look, is not there.
# So a container can run out of room for neighbours by those of another one, and sees only the number.
# Seen with iproute2 6.1.0 on Linux 6.18. Needs root (for network namespaces), python3 and ip(8).
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/tables.py" <<'PYTHON'
import ctypes, os, socket, struct, subprocess

CLONE_NEWNET = 0x40000000
RTM_NEWNEIGHTBL, RTM_GETNEIGHTBL = 64, 66
NDTA_THRESH1, NDTA_CONFIG = 2, 5
libc = ctypes.CDLL(None, use_errno=True)


def attributes(data):
    while data:
        length, kind = struct.unpack_from("=HH", data)
        yield kind, data[4:length]
        data = data[length + 3 & ~3 :]


def arp_cache():
    """gc_thresh1 and the number of entries (struct ndt_config) of the IPv4 table."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    sock.send(struct.pack("=IHHII", 20, RTM_GETNEIGHTBL, 0x301, 1, 0) + struct.pack("=B3x", socket.AF_INET))
    found = {}
    while True:
        data = sock.recv(65536)
        while data:
            length, kind = struct.unpack_from("=IH", data)
            if kind == 3:
                return found["threshold"], found["entries"]
            seen = dict(attributes(data[20:length]))
            if NDTA_THRESH1 in seen:
                found["threshold"] = struct.unpack("=I", seen[NDTA_THRESH1])[0]
                found["entries"] = struct.unpack_from("=HHI", seen[NDTA_CONFIG])[2]
            data = data[length + 3 & ~3 :]


def run(command):
    done = subprocess.run(command, shell=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.stdout.strip()


def expect(what, seen, expected):
    print(f"{what}: {seen}")
    assert seen == expected, f"the behaviour has changed, expected {expected}"


threshold = int(open("/proc/sys/net/ipv4/neigh/default/gc_thresh1").read())
libc.unshare(CLONE_NEWNET)
empty = os.open("/proc/self/ns/net", os.O_RDONLY)
libc.unshare(CLONE_NEWNET)
full = os.open("/proc/self/ns/net", os.O_RDONLY)
run("ip link add va type veth peer name vb && ip link set va up")

libc.setns(empty, CLONE_NEWNET)
expect("the limit is that of the first namespace", arp_cache()[0] == threshold, True)
before = arp_cache()[1]
libc.setns(full, CLONE_NEWNET)
with open(os.environ["folder"] + "/batch", "w") as batch:
    for number in range(1, 201):
        print(f"neigh add 192.0.2.{number} lladdr 02:00:00:00:00:01 dev va", file=batch)
expect("200 neighbours in one namespace", run(f"ip -batch {batch.name}"), "")
libc.setns(empty, CLONE_NEWNET)
# Other namespaces of the machine change the number, too.
more = 0 if "EXPECTED" in os.environ else 200
expect("the table of the other has as many more", abs(arp_cache()[1] - before - more) < 100, True)
expect("its neighbours", run("ip -4 neigh show nud all"), "")
expect("a change of the limit in it", run("ip ntable change name arp_cache thresh1 64"),
    "RTNETLINK answers: No such file or directory")
expect("/proc/sys/net/ipv4/neigh", run("ls /proc/sys/net/ipv4/neigh"), "lo")
PYTHON
uname -sr
export folder
python3 "$folder/tables.py"
