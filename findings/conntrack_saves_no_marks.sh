#!/bin/sh
# What conntrack(8) prints for programs leaves out what it prints for people:
# - `conntrack -L -o save`, whose lines `conntrack -R` takes back, has no marks. Flows that are saved and restored have
#   mark 0, and rules that go by the mark of a connection (policy routing, shaping) lose them without an error;
# - `conntrack -L -o xml` has no type, code or id of ICMP flows: <layer4> is empty. Only <id>, the kernel's number for
#   the flow, tells two of them apart.
# And `conntrack -U -p udp -m 9` is "Operation not supported" whatever the flows are, where -L and -D with the same
# filter work. Without -f conntrack asks for both families (AF_UNSPEC), for which the kernel dumps flows, but looks none
# up. An update takes -f, or an address in the filter.
# Seen with conntrack 1.4.7 on Linux 6.18. Needs root (for a network namespace) and conntrack(8).
set -eu
command -v conntrack >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends conntrack >/dev/null; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/flows.sh" <<'SHELL'
run() { conntrack "$@" 2>/dev/null; }
marks() { run -L | sed -E 's/ .* (mark=[0-9]+).*/ \1/' | sort | xargs; }
addresses='-s 192.0.2.1 -d 192.0.2.2 -t 600'
run -I $addresses -p udp --sport 1 --dport 2 -m 5
run -I $addresses -p icmp --icmp-type 8 --icmp-code 0 --icmp-id 1234 -m 6
echo "listed: $(marks), $(run -L -p icmp | grep -o 'type=8 code=0 id=1234')"
echo "xml: $(run -L -p icmp -o xml | grep -oE '<layer4 [^/]*>(<type>.*)?</layer4>|<mark>.*</mark>' | xargs -d '\n')"

run -L -o save >"$1/saved"
run -F
run -R "$1/saved"
echo "restored: $(marks)"

filter='-p udp --dport 2'
run -U $filter -m 9
echo "update: $? $(marks)"
run -U -f ipv4 $filter -m 9 >/dev/null
echo "update with -f: $? $(marks)"
run -D $filter >/dev/null
echo "delete: $? $(marks)"
SHELL
conntrack --version
uname -sr
seen=$(unshare --net sh "$folder/flows.sh" "$folder")
echo "$seen"
expected="listed: icmp mark=6 udp mark=5, type=8 code=0 id=1234
xml: <layer4 protonum=\"1\" protoname=\"icmp\"></layer4> <layer4 protonum=\"1\" protoname=\"icmp\"></layer4> <mark>6</mark>
restored: icmp mark=0 udp mark=${EXPECTED:-0}
update: 1 icmp mark=0 udp mark=0
update with -f: 0 icmp mark=0 udp mark=9
delete: 0 icmp mark=0"
[ "$seen" = "$expected" ] || { echo "changed, expected:" >&2; echo "$expected" >&2; exit 1; }
