#!/bin/sh
# A prefix with bits behind its length, as 10.0.0.5/8, has three fates in one kernel, and the tools pass it on as it is:
#   refused   IPv4 routes: "Invalid prefix for given prefix length"
#   cleared   IPv6 routes, address labels (ip addrlabel), sets of ipset(8); rules of nft(8), iptables and tc(8) u32
#   kept      rules (ip rule) and xfrm policies, IPv4 and IPv6
# What keeps them still compares the bits of the length alone. So 10.0.0.5/8 and 10.0.0.6/8 are two rules, or two
# policies, for the same packets; the prefix 10.0.0.0/8, for which they stand, deletes neither of them; and `ip rule
# del` by a prefix that was normalized (by ipaddress of Python, or inet of PostgreSQL) is "No such file or directory".
# Seen with iproute2 6.1.0, nftables 1.0.6 and ipset 7.17 on Linux 6.18. Needs root (for a network namespace), these
# tools, and xfrm in the kernel.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/prefixes.sh" <<'SHELL'
set -eu
expect() { # TITLE SEEN EXPECTED
  echo "$1: $2"
  [ "$2" = "$3" ] || { echo "changed, expected: $3" >&2; exit 1; }
}
outcome() { "$@" 2>&1 && echo ok || :; }
ip link set lo up
ip link add va type veth peer name vb
ip link set va up
ip link set vb up
ip addr add 192.0.2.1/24 dev va
expect "IPv4 route" "$(outcome ip route add 10.0.0.5/8 dev va)" "Error: Invalid prefix for given prefix length."
ip -6 route add 2001:db8::5/32 dev va
expect "IPv6 route" "$(ip -6 route show dev va | awk '/2001/ { print $1 }')" "2001:db8::/32"
ip addrlabel add prefix 2001:db8::5/32 label 9
expect "address label" "$(ip addrlabel | awk '/label 9/ { print $2 }')" "2001:db8::/32"
ipset create s hash:net
ipset add s 10.0.0.5/8
expect "ipset" "$(ipset list s | tail -n 1)" "10.0.0.0/8"
nft 'table ip t { chain c { ip saddr 10.0.0.5/8; }; }'
expect "nft" "$(nft list ruleset | awk '/saddr/ { print $3 }')" "10.0.0.0/8"

for prefixes in 10.0.0.5/8,10.0.0.6/8,10.0.0.0/8 2001:db8::5/32,2001:db8::6/32,2001:db8::/32; do
  family=$(case $prefixes in *:*) echo -6 ;; *) echo -4 ;; esac)
  first=${prefixes%%,*} whole=${prefixes##*,}
  second=${prefixes#*,}
  second=${second%,*}
  ip $family rule add from $first lookup 5 pref 100
  expect "rule for $second beside $first" "$(outcome ip $family rule add from $second lookup 5 pref 100)" "${EXPECTED:-ok}"
  expect "rules" "$(ip $family rule show pref 100 | awk '{ print $3 }' | xargs)" "$first $second"
  expect "ip rule del from $whole" "$(outcome ip $family rule del from $whole)" "RTNETLINK answers: No such file or directory"
  any=$([ $family = -4 ] && echo 0.0.0.0/0 || echo ::/0)
  ip xfrm policy add src $first dst $any dir out
  expect "policy for $second beside $first" "$(outcome ip xfrm policy add src $second dst $any dir out)" "ok"
  expect "ip xfrm policy delete src $whole" "$(outcome ip xfrm policy delete src $whole dst $any dir out)" \
    "RTNETLINK answers: No such file or directory"
done
expect "policies" "$(ip xfrm policy | awk '/^src/ { print $2 }' | sort | xargs)" "10.0.0.5/8 10.0.0.6/8 2001:db8::5/32 2001:db8::6/32"
ip xfrm policy flush
# The rules are for all of 10.0.0.0/8.
ip addr add 10.9.9.9/32 dev lo
ip route add 203.0.113.0/24 via 192.0.2.9 table 5
expect "a lookup from 10.9.9.9" "$(ip route get 203.0.113.1 from 10.9.9.9 | head -n 1 | grep -o 'table 5')" "table 5"
SHELL
ip -V
uname -sr
timeout 50 unshare --net sh "$folder/prefixes.sh"
