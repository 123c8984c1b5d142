#!/bin/sh
# `ip -batch` looks a name up once. It keeps the index of each name that a line has used, and forgets it when a line of
# `ip link` sets or deletes that device. So lines that are right as single commands are not in a batch:
# - an alternative name that moves from a device to another still means the first one: the address lands there, and the
#   exit status is 0;
# - after one end of a veth(4) is deleted, the name of the other end, which is gone with it, means an index that is gone.
#   A new device of that name cannot be configured in this batch: "Device not found".
# Seen with iproute2 6.1.0 on Linux 6.18. Needs root (for a network namespace) and ip(8).
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/altname" <<'LINES'
link add one0 type bridge
link add two0 type bridge
link property add dev one0 altname uplink
addr add 192.0.2.1/24 dev uplink
link property del dev one0 altname uplink
link property add dev two0 altname uplink
addr add 192.0.2.2/24 dev uplink
LINES
cat >"$folder/peer" <<'LINES'
link add va type veth peer name vb
addr add 192.0.2.1/24 dev vb
link del va
link add vb type bridge
addr add 192.0.2.2/24 dev vb
LINES
cat >"$folder/both.sh" <<'SHELL'
where() { ip -o -4 addr show to 192.0.2.2 | cut -d' ' -f2; }
clean() { for device in one0 two0 va vb; do ip link del "$device" 2>/dev/null; done; true; }
for name in altname peer; do
  ip -batch "$1/$name" 2>"$1/said"; status=$?
  batch=$(where)
  clean
  while read -r line; do ip $line || exit 1; done <"$1/$name"
  echo "$name: in a batch ${batch:-nowhere}, status $status, $(grep -c 'Device not found' "$1/said") error; as commands $(where)"
  clean
done
SHELL
ip -V
uname -sr
seen=$(unshare --net sh "$folder/both.sh" "$folder")
echo "$seen"
expected="altname: in a batch ${EXPECTED:-one0}, status 0, 0 error; as commands two0
peer: in a batch nowhere, status 1, 1 error; as commands vb"
[ "$seen" = "$expected" ] || { echo "changed, expected:" >&2; echo "$expected" >&2; exit 1; }
