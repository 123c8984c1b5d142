#!/bin/sh
# `ip -j` (iproute2's JSON) has answers that a reader of its lists does not expect, all with valid commands:
# - a filter that ip(8) applies itself, after the kernel (up, group), leaves an empty object for each link that it drops:
#   `ip -j link show up` is [{...},{},{}], so link["ifname"] fails, and the length is the number of all links. A filter
#   by family or by type of link leaves nothing;
# - a dump that the kernel refuses is "[" alone, on standard output, with status 2: the table of routes that has no
#   route yet is such a dump. A route that is not found, and a device that does not exist, are no output at all;
# - `ip -j xfrm policy` and `ip -j mptcp limits` ignore -j: they print text, with status 0.
# Seen with iproute2 6.1.0 on Linux 6.18. Needs root (for a network namespace), python3 and ip(8).
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/ask.py" <<'PYTHON'
import json, os, subprocess, sys


def ip(command):
    return subprocess.run(["ip"] + command.split(), capture_output=True, text=True)


def expect(command, expected):
    done = ip("-j " + command)
    try:
        seen = [link.get("ifname") for link in json.loads(done.stdout)]
    except json.JSONDecodeError:
        seen = (done.stdout.split("\n")[0].strip(), done.returncode)
    print(f"ip -j {command}: {seen}")
    if seen != expected:
        sys.exit(f"the behaviour has changed, expected {expected}")


for command in (
    "link set lo up",
    "link add br0 type bridge",
    "link add br1 group 5 type bridge",
    "addr add 192.0.2.1/24 dev br1",
    "xfrm policy add dir out src 192.0.2.1 dst 192.0.2.2",
):
    assert ip(command).returncode == 0, command
none = json.loads(os.environ.get("EXPECTED", "null"))
expect("link show up", ["lo", none, None])
expect("addr show up", ["lo", None, None])
expect("link show group 5", [None, None, "br1"])
expect("-4 addr show", ["lo", "br1"])
expect("link show type bridge", ["br0", "br1"])
expect("route show table 99", ("[", 2))
expect("route get 203.0.113.1", ("", 2))
expect("link show dev none", ("", 1))
expect("xfrm policy", ("src 192.0.2.1/32 dst 192.0.2.2/32", 0))
expect("mptcp limits", ("add_addr_accepted 0 subflows 2", 0))
PYTHON
ip -V
uname -sr
unshare --net python3 "$folder/ask.py"
