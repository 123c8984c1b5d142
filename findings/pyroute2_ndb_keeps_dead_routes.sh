#!/bin/sh
# NDB of pyroute2, a database that follows the kernel by its events, has IPv4 routes that the kernel has no more. The
# kernel tells of no route that goes with a link or with a nexthop object. NDB deletes the routes of a link that goes
# down itself, but not all:
# - a multipath route stays for ever, also when its only link is down. It is listed once for each of its nexthops,
#   without a gateway;
# - a route with a nexthop object (nhid) stays when the object is deleted.
# And of two routes with the same destination and metric (ip route append) it has one, and none after that one is
# deleted, while the kernel has the other. A new NDB, which dumps, is right about the dead ones.
# Seen with pyroute2 0.9.5 and iproute2 6.1.0 on Linux 6.18. Needs root (for a network namespace), python3, ip(8) and
# the network for pip.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
pip="python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --no-deps"
$pip --target "$folder/python" pyroute2==0.9.5
export PYTHONPATH="$folder/python"
uname -sr
cat >"$folder/routes.py" <<'PYTHON'
import os, subprocess, time
from pyroute2 import NDB


def ip(command):
    return subprocess.run(["ip", *command.split()], check=True, stdout=subprocess.PIPE, text=True).stdout


def kernel():
    """Destinations of routes that were added here, each once."""
    return sorted({line.split()[0] for line in ip("-4 route show proto static").split("\n") if line[:1].isdigit()})


def database(ndb):
    return sorted({f"{route.dst}/{route.dst_len}" for route in ndb.routes.dump() if route.family == 2 and route.proto == 4})


def follow(ndb):
    """NDB has read all events, when it has read that of a new link and of its new route."""
    follow.count += 1
    ip(f"link add mark{follow.count} type bridge")
    ip(f"link set mark{follow.count} up")
    ip(f"route add 10.255.0.{follow.count}/32 dev mark{follow.count}")
    end = time.monotonic() + 20
    while not any(route.dst == f"10.255.0.{follow.count}" for route in ndb.routes.dump()):
        assert time.monotonic() < end, "NDB does not follow"
        time.sleep(0.05)


follow.count = 0


def expect(what, seen, expected):
    print(f"{what}: {seen}")
    assert seen == expected, f"the behaviour has changed, expected {expected}"


ip("link add va type veth peer name vb")
ip("link set va up")
ip("link set vb up")
ip("addr add 192.0.2.1/24 dev va")
with NDB(log="off") as ndb:
    ip("nexthop add id 5 via 192.0.2.2 dev va")
    ip("route add 10.1.0.0/16 proto static nhid 5")
    ip("route add 10.2.0.0/16 proto static nexthop via 192.0.2.2 nexthop via 192.0.2.3")
    ip("route add 10.3.0.0/16 proto static via 192.0.2.2")
    ip("route add 10.4.0.0/16 proto static via 192.0.2.2")
    ip("route append 10.4.0.0/16 proto static via 192.0.2.3")
    follow(ndb)
    all_of_them = ["10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16", "10.4.0.0/16"]
    expect("kernel", kernel(), all_of_them)
    expect("NDB", database(ndb), all_of_them)
    ip("nexthop del id 5")
    ip("route del 10.4.0.0/16 via 192.0.2.3")
    follow(ndb)
    expect("nexthop object and appended route deleted, kernel", kernel(), ["10.2.0.0/16", "10.3.0.0/16", "10.4.0.0/16"])
    expect("NDB", database(ndb), ["10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16"])
    ip("link set va down")
    follow(ndb)
    expect("link down, kernel", kernel(), [])
    expect("NDB", database(ndb), os.environ.get("EXPECTED", "10.2.0.0/16").split())
    expect("NDB, entries of it", len([route for route in ndb.routes.dump() if route.dst == "10.2.0.0"]), 2)
with NDB(log="off") as ndb:
    expect("a new NDB", database(ndb), [])
PYTHON
timeout 50 unshare --net python3 "$folder/routes.py"
