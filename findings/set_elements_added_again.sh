#!/bin/sh
# What an element of a set keeps when it is added again, as by a program that writes its whole list at each start, is
# opposite in ipset(8) and nft(8). Only the new value of a map is an error.
#
#                  ipset add -exist                      nft add element
#   comment        is that of the new one, or gone       stays; a new one is dropped
#   mark, queue    are those of the new ones, or gone    the value of a map: "File exists"
#   counters       stay                                  -
#   timeout        is the new one, or that of the set    is the new one, or that of the set
#
# So `ipset add -exist` without a comment and a mark is not "add if absent": it takes them from the element. And
# `nft add element` never changes a comment.
# Seen with ipset 7.17 and nftables 1.0.6 on Linux 6.18. Needs root (for a network namespace), ipset(8) and nft(8).
set -eu
packages='ipset nftables'
for package in $packages; do dpkg -s "$package" >/dev/null 2>&1 || missing="${missing:-} $package"; done
if [ -n "${missing:-}" ]; then
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/again.sh" <<'SHELL'
# Timeouts are shown in thousands of seconds: they run meanwhile.
by_ipset() {
  ipset add s 192.0.2.1 "$@" -exist
  echo "ipset${*:+ $*}: $(ipset save s | sed -nE 's/^add s 192.0.2.1 timeout ([0-9]+)[0-9]{3}/\1/p')"
}
by_nft() {
  nft "add element ip t s { 192.0.2.1 $* }"
  echo "nft${*:+ $*}: $(nft -T list set ip t s | sed -nE 's/.*elements = \{ 192.0.2.1 (.*) \}/\1/p' | sed -E 's/expires [^ ]+ //')"
}
ipset create s hash:ip timeout 8500 counters comment skbinfo
by_ipset timeout 4500 comment first skbmark 0x5 skbqueue 3 packets 6 bytes 7
by_ipset
by_ipset comment second timeout 2500
nft 'add table ip t; add set ip t s { type ipv4_addr; timeout 8h; }; add map ip t m { type ipv4_addr : mark; }'
by_nft timeout 4h comment first
by_nft timeout 2h comment second
by_nft
nft 'add element ip t m { 192.0.2.1 : 1 }'
nft 'add element ip t m { 192.0.2.1 : 2 }' 2>&1 | head -1
SHELL
dpkg-query -W -f='${Package} ${Version}\n' $packages
uname -sr
seen=$(unshare --net sh "$folder/again.sh")
echo "$seen"
expected="ipset timeout 4500 comment first skbmark 0x5 skbqueue 3 packets 6 bytes 7: 4 packets 6 bytes 7 comment \"first\" skbmark 0x5 skbqueue 3
ipset: 8 packets 6 bytes 7${EXPECTED:-}
ipset comment second timeout 2500: 2 packets 6 bytes 7 comment \"second\"
nft timeout 4h comment first: timeout 14400s comment \"first\"
nft timeout 2h comment second: timeout 7200s comment \"first\"
nft: comment \"first\"
Error: Could not process rule: File exists"
[ "$seen" = "$expected" ] || { echo "changed, expected:" >&2; echo "$expected" >&2; exit 1; }
