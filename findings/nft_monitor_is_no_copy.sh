#!/bin/sh
# The lines of `nft monitor` have the syntax of nft(8). Carried out elsewhere they make another rule set:
# - `insert rule ... position 7` is told as "insert rule ... handle H", where H is the rule in front of the new one.
#   Read by nft, it is inserted in front of H. The JSON of the monitor has no place at all;
# - `replace rule` is told as a deletion and an addition: behind the rule in front, and at the end if there is none. The
#   rule keeps its handle, which only the JSON shows; the added one has another, which later lines do not know;
# - `rename chain` is told as the addition of a chain of the new name. Nothing tells of the old name; only the JSON has
#   the handle, which is the same.
# The JSON has no lines for generations, so transactions have no borders, and deleted objects are told with values that
# they never had: a set of the type "invalid", a limit per "error".
# Seen with nftables 1.0.6 on Linux 6.18. Needs root (for network namespaces), python3 and nft(8).
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/monitor.sh" <<'SHELL'
set -eu
expect() { # TITLE SEEN EXPECTED
  echo "$1: $2"
  [ "$2" = "$3" ] || { echo "changed, expected: $3" >&2; exit 1; }
}
rules() { nft -a list chain ip t "$1" | sed -n 's/.*tcp dport \([0-9]*\).*handle \([0-9]*\)/\1(\2)/p' | xargs; }
cat >"$1/base" <<'NFT'
table ip t {
  chain a {
  }
  chain c {
    tcp dport 10
    tcp dport 20
  }
}
NFT
nft -f "$1/base"
expect "the rules (and their handles) at first" "$(rules c)" "10(3) 20(4)"
stdbuf -oL nft monitor >"$1/text" &
text=$!
stdbuf -oL nft -j monitor >"$1/json" &
json=$!
trap 'kill "$text" "$json"' EXIT
# Both have joined their group.
until [ "$(awk '$2 == 12 && $4 != "00000000"' /proc/net/netlink | wc -l)" = 2 ]; do sleep 0.05; done

nft insert rule ip t c position 4 tcp dport 15
nft replace rule ip t c handle 3 tcp dport 11
nft rename chain ip t a b
nft add set ip t s '{ type ipv4_addr; }'
nft add limit ip t l '{ rate 5/second }'
nft delete limit ip t l
nft delete set ip t s
nft add table ip last
until grep -q 'table ip last' "$1/text" && grep -q '"last"' "$1/json"; do sleep 0.05; done
expect "the rules at last" "$(rules c)" "11(3) 15(5) 20(4)"
expect "chains" "$(nft list ruleset | awk '/chain/ { print $2 }' | xargs)" "b c"

echo "--- told"
cat "$1/text"
cat "$1/json"
echo "--- the text, read by nft in another namespace"
unshare --net sh -c '
  nft -f "$0/base"
  grep -v "^#" "$0/text" | while read -r line; do nft "$line"; done
  nft -a list ruleset' "$1" >"$1/copy"
expect "its rules" "$(sed -n 's/.*tcp dport \([0-9]*\).*handle \([0-9]*\)/\1(\2)/p' "$1/copy" | xargs)" "${EXPECTED:-15(5) 20(4) 11(6)}"
expect "its chains" "$(awk '/chain/ { print $2 }' "$1/copy" | xargs)" "a c b"
python3 - "$1/json" <<'PYTHON'
import json, sys

events = [next(iter(json.loads(line).items())) for line in open(sys.argv[1])]
seen = []
for change, item in events:
    (kind, what), = item.items()
    seen.append((change, kind, {key: what[key] for key in ("name", "handle", "index", "position", "type", "per") if key in what}))
for event in seen:
    print(event)
assert seen == [
    ("insert", "rule", {"handle": 5}),
    ("delete", "rule", {"handle": 3}),
    ("add", "rule", {"handle": 3}),
    ("add", "chain", {"name": "b", "handle": 1}),
    ("add", "set", {"name": "s", "handle": 6, "type": "ipv4_addr"}),
    ("add", "limit", {"name": "l", "handle": 7, "per": "second"}),
    ("delete", "limit", {"name": "l", "handle": 7, "per": "error"}),
    ("delete", "set", {"name": "s", "handle": 6, "type": "invalid"}),
    ("add", "table", {"name": "last", "handle": 2}),
], "the behaviour has changed"
PYTHON
SHELL
nft --version
uname -sr
timeout 50 unshare --net sh "$folder/monitor.sh" "$folder"
