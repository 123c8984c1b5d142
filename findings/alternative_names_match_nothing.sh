#!/bin/sh
# An alternative name of a link (ip link property add, systemd.link(5)) is a name where a program looks a device up, and
# none where a name is compared as text. Nothing says which of the two a place is:
#   a device         ip(8), tc(8), ethtool(8), if_nametoindex(3), SO_BINDTODEVICE (read back as the first name)
#   text, no error   iifname of nft(8), an ingress chain of nft, iptables -i: accepted, listed, and never match
#   half of it       ifconfig NAME shows the link without its IPv4 address, arp -i NAME no entry
#   no such name     iif of nft, /proc/sys/net, /sys/class/net
# A routing policy rule is both: `ip rule add iif NAME` looks the device up and matches. If the device is given another
# first name and its old one again, or is made anew with the same names, the rule compares text from then on, and stays
# [detached]. A rule by the first name comes back.
# Seen with iproute2 6.1.0, nftables 1.0.6, iptables 1.8.9, net-tools 2.10 and ethtool 6.1 on Linux 6.18. Needs root
# (for a network namespace), these tools and python3.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
uname -sr
nft --version
cat >"$folder/names.sh" <<'SHELL'
set -eu
expect() { # TITLE SEEN EXPECTED
  echo "$1: $2"
  [ "$2" = "$3" ] || { echo "changed, expected: $3" >&2; exit 1; }
}
mount -t sysfs none /sys
ip link add va type veth peer name vb
ip link property add dev va altname wan0
ip link set va up
ip link set vb up
ip addr add 192.0.2.1/24 dev va
ip neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev wan0

expect "ip addr show wan0" "$(ip -o -4 addr show wan0 | awk '{print $2, $4}')" "va 192.0.2.1/24"
expect "ethtool -k wan0" "$(ethtool -k wan0 | head -n 1)" "Features for va:"
expect "SO_BINDTODEVICE wan0" "$(python3 -c '
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"wan0\0")
print(s.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).strip(b"\0").decode())')" "va"
for name in va wan0; do
  expect "ifconfig $name, IPv4 addresses" "$(ifconfig $name | grep -c 'inet ' || :)" $([ $name = va ] && echo 1 || echo 0)
  expect "arp -i $name, entries" "$(arp -n -i $name | grep -c ether || :)" $([ $name = va ] && echo 1 || echo 0)
done
expect "conf in /proc" "$(ls -d /proc/sys/net/ipv4/conf/*a* /sys/class/net/*a* | grep -E 'va|wan0' | xargs)" \
  "/proc/sys/net/ipv4/conf/va /sys/class/net/va"

nft -f - <<'NFT'
table netdev t {
  counter ingress_va {}
  counter ingress_wan0 {}
  chain a { type filter hook ingress device "va" priority 0; counter name ingress_va; }
  chain b { type filter hook ingress device "wan0" priority 0; counter name ingress_wan0; }
}
table inet t {
  counter iifname_va {}
  counter iifname_wan0 {}
  chain c { type filter hook prerouting priority 0; iifname va counter name iifname_va; iifname wan0 counter name iifname_wan0; }
}
NFT
iptables-legacy -A INPUT -i va
iptables-legacy -A INPUT -i wan0
expect "nft, iif" "$(nft add rule inet t c iif wan0 2>&1 | head -n 1)" "Error: Interface does not exist"
# A packet from the other end to va's address.
python3 - <<'PYTHON'
import fcntl, socket, struct

packet = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
packet.bind(("vb", 0x0800))
mac = fcntl.ioctl(packet, 0x8927, struct.pack("16s16x", b"va"))[18:24]
head = struct.pack("!BBHIBBH4s4s", 0x45, 0, 28, 0, 64, 17, 0, socket.inet_aton("192.0.2.9"), socket.inet_aton("192.0.2.1"))
total = sum(struct.unpack("!10H", head))
total = (total & 0xFFFF) + (total >> 16)
head = head[:10] + struct.pack("!H", 0xFFFF - total) + head[12:]
packet.send(mac + mac[:5] + b"\xff" + b"\x08\0" + head + struct.pack("!4H", 9, 9, 8, 0))
PYTHON
packets() { nft list counter "$1" t "$2" | sed -n 's/.*packets \([0-9]*\).*/\1/p'; }
while [ "$(packets inet iifname_va)" = 0 ]; do sleep 0.05; done
# IPv6 of the other end may send some, too.
some() { sed 's/^[1-9][0-9]*$/some/'; }
expect "packets, nft iifname va, wan0" "$(packets inet iifname_va | some) $(packets inet iifname_wan0)" "some 0"
expect "packets, nft ingress of va, wan0" "$(packets netdev ingress_va | some) $(packets netdev ingress_wan0)" \
  "some ${EXPECTED:-0}"
expect "packets, iptables -i va, wan0" "$(iptables-legacy -nvxL INPUT | awk 'NR > 2 { print $1 }' | xargs)" "1 0"

rules() { ip rule show | sed -n 's/.*from all iif \(.*\) lookup 9.*/\1/p' | xargs; }
ip route add 203.0.113.0/24 via 192.0.2.9 table 9
ip rule add iif wan0 lookup 9
ip rule add iif va lookup 9
expect "rules" "$(rules)" "va wan0"
expect "a route by the rule of wan0" "$(ip rule del iif va; sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.va.rp_filter=0 net.ipv4.ip_forward=1
  ip route get 203.0.113.7 from 192.0.2.77 iif va | head -n 1 | cut -d' ' -f1-5; ip rule add iif va lookup 9)" "203.0.113.7 from 192.0.2.77 via 192.0.2.9"
ip link set va down
ip link set va name vx
expect "rules, renamed" "$(rules)" "va [detached] wan0 [detached]"
ip link set vx name va
expect "rules, named as before" "$(rules)" "va wan0 [detached]"
ip link del va
ip link add va type veth peer name vb
ip link property add dev va altname wan0
expect "rules, made anew" "$(rules)" "va wan0 [detached]"
SHELL
unshare --net --mount sh "$folder/names.sh"
