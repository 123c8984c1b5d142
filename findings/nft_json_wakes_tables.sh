#!/bin/sh
# The JSON of nft(8) is not the rule set. What `nft -j list ruleset` prints, read back by `nft -j -f`, is accepted
# without a word, and differs from what was listed:
# - a table with the flag dormant, whose chains see no packets, comes back awake, with its drop policies. Its "flags" in
#   JSON are "ip", the family, so no reader of the JSON can see that the table is off;
# - auto-merge of a set and the comments of tables and chains are not in the JSON. The comment of a set is in it, but is
#   not read back.
# `nft list ruleset` read back by `nft -f` is the same rule set.
# Seen with nftables 1.0.6 on Linux 6.18. Needs root (for a network namespace), python3, ip(8) and nft(8).
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
nft --version
uname -sr
cat >"$folder/rules" <<'RULES'
table ip t {
	comment "of the table"
	flags dormant
	set s {
		type ipv4_addr
		flags interval
		auto-merge
		comment "of the set"
	}
	chain c {
		comment "of the chain"
		type filter hook output priority filter; policy drop;
		counter accept comment "of the rule"
	}
}
RULES
cat >"$folder/back.py" <<'PYTHON'
import json, os, socket, subprocess, sys

folder = sys.argv[1]


def nft(*arguments, text=None):
    return subprocess.run(["nft", *arguments], input=text, check=True, capture_output=True, text=True).stdout


def expect(what, seen, expected):
    print(f"{what}: {seen}")
    if seen != expected:
        sys.exit(f"the behaviour has changed, expected {expected}")


def counted():
    """Whether the chain sees a datagram that is sent."""
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 9))
    return "counter packets 0" not in nft("list", "ruleset")


subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
nft("-f", f"{folder}/rules")
listed, text = nft("-j", "list", "ruleset"), nft("list", "ruleset")
expect("packets counted", counted(), False)
objects = [entry for entry in json.loads(listed)["nftables"] if "metainfo" not in entry]
expect("flags of the table", objects[0]["table"]["flags"], os.environ.get("EXPECTED", "ip"))
expect("comments in JSON", [kind for entry in objects for kind in entry if "comment" in entry[kind]], ["set", "rule"])

nft("flush", "ruleset")
nft("-f", "-", text=text)
expect("the same after text", nft("list", "ruleset") == text, True)

nft("flush", "ruleset")
nft("-j", "-f", "-", text=listed)
expect("packets counted after JSON", counted(), True)
now = nft("list", "ruleset")
lost = [line.strip() for line in text.splitlines() if line not in now.splitlines() and "counter" not in line]
expect("lost after JSON", lost, ["flags dormant", 'comment "of the table"', "auto-merge", 'comment "of the set"', 'comment "of the chain"'])
PYTHON
unshare --net python3 "$folder/back.py" "$folder"
