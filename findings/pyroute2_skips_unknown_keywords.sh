#!/bin/sh
# IPRoute of pyroute2 does not check the names of keywords. What a name that it does not know does depends on the call,
# and there is no error in either case:
# - a change is made without it, and succeeds: a route with "gatway" is a route without a gateway, and link("set",
#   mtuu=1400) changes nothing. The name of an attribute that exists has the same fate in the wrong place: route("add",
#   mtu=1300) adds a route without an MTU, which only metrics={"mtu": 1300} sets;
# - a dump is filtered by it, and no message matches: a list of addresses by "adress" is empty;
# - get_routes(dst=...) is no filter. It is a lookup (RTM_GETROUTE without NLM_F_DUMP), so it raises ENETUNREACH for a
#   prefix that is in a table without a rule, and answers with the prefix length 32 for one that is found.
# Seen with pyroute2 0.9.5 on Linux 6.18. Needs root (for a network namespace), python3, ip(8) and the network for pip.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
pip="python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --no-deps"
$pip --target "$folder/python" pyroute2==0.9.5
export PYTHONPATH="$folder/python"
cat >"$folder/keywords.py" <<'PYTHON'
import errno, json, os, subprocess, sys
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

route = IPRoute()


def shown(command):
    return " ".join(subprocess.run(["ip"] + command.split(), capture_output=True, text=True, check=True).stdout.split())


def expect(what, seen, expected):
    print(f"{what}: {seen}")
    if seen != expected:
        sys.exit(f"the behaviour has changed, expected {expected}")


def lookup(destination):
    try:
        return [f"{found.get('dst')}/{found['dst_len']}" for found in route.get_routes(dst=destination)]
    except NetlinkError as error:
        return errno.errorcode[error.code]


route.link("add", ifname="va", kind="veth", peer="vb")
va, vb = route.link_lookup(ifname="va")[0], route.link_lookup(ifname="vb")[0]
for index in va, vb:
    route.link("set", index=index, state="up")
route.addr("add", index=va, address="192.0.2.1", prefixlen=24)

route.link("set", index=va, mtuu=1400)
expect("link set, mtuu=1400", json.loads(shown("-j link show dev va"))[0]["mtu"], int(os.environ.get("EXPECTED", 1500)))
route.route("add", dst="198.51.100.0/25", oif=va, gatway="192.0.2.2")
expect("route add, gatway", shown("route show 198.51.100.0/25"), "198.51.100.0/25 dev va proto static")
route.route("add", dst="198.51.100.128/25", gateway="192.0.2.2", mtu=1300)
expect("route add, mtu", shown("route show 198.51.100.128/25"), "198.51.100.128/25 via 192.0.2.2 dev va proto static")
route.route("add", dst="203.0.113.0/25", gateway="192.0.2.2", metrics={"mtu": 1300})
expect("route add, metrics", shown("route show 203.0.113.0/25"), "203.0.113.0/25 via 192.0.2.2 dev va proto static mtu 1300")

expect("get_addr, address", len(list(route.get_addr(address="192.0.2.1"))), 1)
expect("get_addr, adress", len(list(route.get_addr(adress="192.0.2.1"))), 0)
route.route("add", dst="203.0.113.128/25", gateway="192.0.2.2", table=1000)
expect("get_routes, table=1000", len(list(route.get_routes(table=1000))), 1)
expect("get_routes, dst of table 1000", lookup("203.0.113.128/25"), "ENETUNREACH")
expect("get_routes, dst", lookup("198.51.100.128/25"), ["198.51.100.128/32"])
PYTHON
python3 -c 'import pyroute2; print("pyroute2", pyroute2.__version__)'
uname -sr
unshare --net python3 "$folder/keywords.py"
