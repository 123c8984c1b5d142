#!/bin/sh
# `ip -j` and `tc -j` print a list in JSON, but "nothing there" has five forms, with exit status 0 except one:
#   []                 most: ip -j link show type bridge, route, neigh, rule
#   no byte at all     ip -j netns list, tc -j class show, ip -j xfrm policy; a JSON parser fails at the end of input
#   an empty object    ip -j link show up, ip -j addr show up: {} in the place of each link that is left out, so the
#                      length of the list is that of all links, and .ifname of an element is null
#   [ alone            a dump that the kernel refuses: ip -j route show table 99; exit status 2
#   text               ip -j xfrm policy prints text when there is a policy: -j is accepted, and ignored
# So a program has to drop empty objects, take no output for an empty list, and look at the exit status first.
# Seen with iproute2 6.1.0 of Debian 12. Needs root (for namespaces), python3, ip(8), tc(8), and xfrm in the kernel.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/look.py" <<'PYTHON'
import json, os, subprocess


def shown(command):
    """The exit status, and what a JSON parser makes of the output: each link as its name."""
    ran = subprocess.run(command.split(), capture_output=True, text=True)
    try:
        seen = [value.get("ifname", value) for value in json.loads(ran.stdout)]
    except json.JSONDecodeError:
        seen = "no JSON: " + repr(ran.stdout.strip().split("\n")[0][:20])
    return ran.returncode, seen


def expect(command, *expected):
    seen = shown(command)
    print(f"{command}: {seen}")
    assert seen == expected, f"the behaviour has changed, expected {expected}"


subprocess.run("ip link add va type veth peer name vb && ip link set va up", shell=True, check=True)
expect("ip -j link show", 0, ["lo", "vb", "va"])
expect("ip -j link show type bridge", 0, [])
expect("ip -j neigh show", 0, [])
expect("ip -j link show up", 0, json.loads(os.environ.get("EXPECTED", '[{}, {}, "va"]')))
expect("ip -j addr show up", 0, [{}, {}, "va"])
expect("ip -j netns list", 0, "no JSON: ''")
expect("tc -j class show dev va", 0, "no JSON: ''")
expect("tc -j filter show dev va", 0, [])
expect("ip -j route show table 99", 2, "no JSON: '['")
expect("ip -j xfrm policy", 0, "no JSON: ''")
subprocess.run("ip xfrm policy add src 192.0.2.0/24 dst 198.51.100.0/24 dir out", shell=True, check=True)
expect("ip -j xfrm policy", 0, "no JSON: 'src 192.0.2.0/24 dst'")
PYTHON
ip -V
unshare --net --mount sh -c 'mount -t tmpfs none /run && exec timeout 50 python3 "$1"' sh "$folder/look.py"
