#!/bin/sh
# Elements of an nft(8) set come and go without an event: those that a rule adds from packets (`add @set`, `update
# @set`), and those whose timeout has passed. No NFT_MSG_NEWSETELEM or NFT_MSG_DELSETELEM is sent, and the generation of
# the rule set stays, so neither NLM_F_DUMP_INTR nor a comparison of generations shows a difference. NEWSETELEM of a
# program's own element says `expires`, and a monitor has to count the time itself. A rule's `update @set` makes that
# wrong: it prolongs the element, and is not told either.
# Seen with nftables 1.0.6 on Linux 6.18. Needs root (for a network namespace), nft(8), ip(8) and bash.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/look.sh" <<'SHELL'
told="$1/told"
ip link set lo up
nft -f - <<'NFT'
table ip t {
  set own { type inet_service; size 1; flags timeout; timeout 1s; gc-interval 1s; }
  set seen { type inet_service; size 10; flags dynamic,timeout; timeout 1h; }
  chain c { type filter hook output priority 0; udp dport 4001-4009 update @seen { udp dport }; }
}
NFT
stdbuf -oL nft monitor >"$told" &
monitor=$!
trap 'kill "$monitor"' EXIT
# The monitor has joined its group.
until awk '$2 == 12 && $4 != "00000000" { found = 1 } END { exit !found }' /proc/net/netlink; do :; done

expect() { # TITLE SEEN EXPECTED
  echo "$1: $2"
  [ "$2" = "$3" ] || { echo "changed, expected: $3" >&2; exit 1; }
}
ports() { nft list set ip t "$1" | grep -oE '\b[0-9]{4}\b' | tr '\n' ' '; }
for port in 4001 4002 4001; do bash -c "echo >/dev/udp/127.0.0.1/$port"; done
expect "added by packets" "$(ports seen)" "4001 4002 "
nft add element ip t own '{ 5001 }'
# The set takes one element: the kernel has removed 5001 before it takes 5002.
until nft add element ip t own '{ 5002 }' 2>/dev/null; do sleep 0.1; done
expect "added by nft(8), after a second" "$(ports own)" "5002 "
until grep -q 5002 "$told"; do sleep 0.05; done
nft add table ip last
until grep -q 'table ip last' "$told"; do sleep 0.05; done
sed -nE 's/.*generation ([0-9]+).*/generation \1/p; s/^(add|delete) (element|table) ip (t )?([a-z]+)( \{ ([0-9]+).*)?/\1 \4 \6/p' "$told" >"$told.short"
expect "told" "$(tr '\n' ';' <"$told.short")" \
  "add own 5001;generation 3;add own 5002;generation ${EXPECTED:-4};add last ;generation 5;"
SHELL
nft --version
uname -sr
timeout 50 unshare --net sh -eu "$folder/look.sh" "$folder"
