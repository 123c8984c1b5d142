#!/bin/sh
# The same text is another address, or another number, to the next netlink tool. None of these tells so:
#
#                ip       nft       ipset         conntrack
#   10           10.0.0.0 0.0.0.10  0.0.0.10      0.0.0.10    ip fills from the right, the others by inet_aton(3)
#   10.1/16      10.1.0.0 (refused) 10.0.0.0/16   (refused)
#   port 010               8         8             10          octal, but conntrack takes ports as decimal
#   port 08                8         (refused)     8           no octal number; nft then asks getaddrinfo(3)
#   port 0x10              16        16            0
#   mark 010     8         8                       8          octal also in conntrack
#   mark 08      (refused) (refused)               0
#
# So a padded port ("%03d") matches in conntrack and not in nft, a padded mark is octal in all, and conntrack(8) takes
# port 0x10 and mark 08 for 0 without an error. Whoever hands texts of users to several tools, or compares them, has to
# bring them into one form first: four decimal numbers, without zeros in front.
# Seen with iproute2 6.1.0, nftables 1.0.6, ipset 7.17 and conntrack 1.4.7 on Linux 6.18. Needs root (for a network
# namespace), these tools and python3.
set -eu
packages='iproute2 nftables ipset conntrack'
for package in $packages; do dpkg -s "$package" >/dev/null 2>&1 || missing="${missing:-} $package"; done
if [ -n "${missing:-}" ]; then
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/read.py" <<'PYTHON'
import os, re, subprocess, sys


def run(command):
    return subprocess.run(command, shell=True, capture_output=True, text=True)


def found(pattern, add, show, *clean):
    """What the tool shows after the command, or None where it refuses."""
    refused = run(add).returncode != 0
    seen = re.search(pattern, run(show).stdout)
    for command in clean:
        run(command)
    return None if refused else seen.group(1)


def ip(text):
    return found(r"(\S+)", f"ip route add {text} dev va", "ip route show proto boot", "ip route flush proto boot")


def ip_mark(text):
    return found("fwmark 0x(.*?) lookup", f"ip rule add fwmark {text} table 77", "ip rule", "ip rule del table 77")


def nft(match, text):
    return found(f"{match} (.*)", f"nft add rule ip t c {match} {text}", "nft list chain ip t c", "nft flush chain ip t c")


def ipset(name, text):
    return found(r"Members:\n(\S+)", f"ipset add {name} {text}", f"ipset list {name}", f"ipset flush {name}")


def conntrack(field, source="198.51.100.1", port="1", mark="1"):
    return found(
        rf"\b{field}=(\S+)",
        f"conntrack -I -p udp -t 60 -d 192.0.2.9 --dport 2 -s {source} --sport {port} -m {mark}",
        "conntrack -L",
        "conntrack -F",
    )


def expect(what, seen, *expected):
    print(f"{what}: {', '.join(str(value) for value in seen)}")
    if seen != list(expected):
        sys.exit(f"the behaviour has changed, expected {expected}")


for command in (
    "ip link add va type veth peer name vb",
    "ip link set va up",
    "nft 'add table ip t; add chain ip t c'",
    "ipset create nets hash:net",
    "ipset create ports bitmap:port range 0-1000",
):
    assert run(command).returncode == 0, command
print("ip, nft, ipset, conntrack")
for text, *expected in (
    ("10", os.environ.get("EXPECTED", "10.0.0.0"), "0.0.0.10", "0.0.0.10", "0.0.0.10"),
    ("10.1/16", "10.1.0.0/16", None, "10.0.0.0/16", None),
):
    expect(f"address {text}", [ip(text), nft("ip saddr", text), ipset("nets", text), conntrack("src", source=text)], *expected)
for text, *expected in (("010", "8", "8", "10"), ("08", "8", None, "8"), ("0x10", "16", "16", "0")):
    expect(f"port {text}", [nft("udp sport", text), ipset("ports", text), conntrack("sport", port=text)], *expected)
for text, *expected in (("010", "8", "0x00000008", "8"), ("08", None, None, "0")):
    expect(f"mark {text}", [ip_mark(text), nft("meta mark", text), conntrack("mark", mark=text)], *expected)
PYTHON
dpkg-query -W -f='${Package} ${Version}\n' $packages
uname -sr
unshare --net python3 "$folder/read.py"
