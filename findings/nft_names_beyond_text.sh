#!/bin/sh
# nf_tables takes any string for a name, and nft(8) prints it as it is: without quotes, as the text form of rules has
# none for names. So a rule set that another program made, or nft itself by JSON, can have names with which
# `nft list ruleset` is no longer a text that `nft -f` reads: a chain named ip, drop or 01, or with a space or an umlaut.
# One such name makes the whole file unreadable. `nft delete chain` cannot name the chain either. The JSON of the
# same rule set is read back. The same holds for comments with quotation marks, which are not escaped.
# Seen with nftables 1.0.6 on Linux 6.18. Needs root (for a network namespace), python3 and nft(8).
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
nft --version
uname -sr
cat >"$folder/names.py" <<'PYTHON'
import json, os, subprocess, sys


def nft(*arguments, text=None):
    """The output, or None after an error."""
    done = subprocess.run(["nft", *arguments], input=text, capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else None


def made(chain, comment):
    rule = {"family": "ip", "table": "t", "chain": chain, "comment": comment, "expr": [{"accept": None}]}
    objects = [{"table": {"family": "ip", "name": "t"}}, {"chain": {"family": "ip", "table": "t", "name": chain}}, {"rule": rule}]
    nft("flush", "ruleset")
    assert nft("-j", "-f", "-", text=json.dumps({"nftables": [{"add": entry} for entry in objects]})) is not None


def expect(what, seen, expected):
    print(f"{what}: {seen}")
    if seen != expected:
        sys.exit(f"the behaviour has changed, expected {expected}")


def read(chain, comment):
    """What takes the rule set: text, JSON, a command with the name."""
    made(chain, comment)
    text, listed = nft("list", "ruleset"), nft("-j", "list", "ruleset")
    deleted = nft("delete", "chain", "ip", "t", chain) is not None
    nft("flush", "ruleset")
    by_text = nft("-f", "-", text=text) is not None
    nft("flush", "ruleset")
    by_json = nft("-j", "-f", "-", text=listed) is not None and nft("list", "ruleset") == text
    return {"text": by_text, "JSON": by_json, "delete": deleted}


for chain in "a-b.c", "ip", "drop", "01", "two words", "ü":
    fine = chain == "a-b.c"
    text = fine or "EXPECTED" in os.environ
    expect(f"chain {chain!r}", read(chain, "plain"), {"text": text, "JSON": True, "delete": fine})
expect("comment with quotation marks", read("c", 'the "good" one'), {"text": False, "JSON": True, "delete": True})
PYTHON
unshare --net python3 "$folder/names.py"
