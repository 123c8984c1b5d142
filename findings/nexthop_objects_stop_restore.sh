#!/bin/sh
# The kernel does not take a route with a nexthop object back in the form in which it dumps it. The dump has the number
# of the object (RTA_NH_ID) and its gateway and device as well, for readers that do not know such objects. A request
# with both is EINVAL, "Nexthop specification and nexthop id are mutually exclusive", to RTM_DELROUTE as to RTM_NEWROUTE. So
# - `ip route flush` removes all routes but those, and fails with status 2;
# - `ip route restore` of what `ip route save` wrote ends at the first of them. The routes behind it are not restored;
# - any program that deletes or moves routes by the message of the dump fails with these.
# With net.ipv4.nexthop_compat_mode 0, which each namespace has for both families, the dump has RTA_NH_ID alone, and all
# of this works. The default is 1.
# Seen with iproute2 6.1.0 on Linux 6.18. Needs root (for a network namespace) and ip(8).
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/routes.sh" <<'SHELL'
ip link add va type veth peer name vb
ip link set va up
ip link set vb up
ip addr add 192.0.2.1/24 dev va
ip addr add 2001:db8::1/64 dev va nodad
ip nexthop add id 4 via 192.0.2.5 dev va
ip nexthop add id 6 via 2001:db8::5 dev va
listed() { ip "-$family" route show proto boot | sed 's/ via .*//; s/ metric .*//; s/ *$//' | paste -sd,; }
for mode in 1 0; do
  echo $mode >/proc/sys/net/ipv4/nexthop_compat_mode
  for family in 4 6; do
    [ $family = 4 ] && net=10.0. via=192.0.2.5 end=.0/24 || net=2001:db8:1: via=2001:db8::5 end=::/64
    for number in 1 2 3; do
      [ $number = 2 ] && to="nhid $family" || to="via $via dev va"
      ip "-$family" route add "$net$number$end" $to
    done
    ip "-$family" route save proto boot >"$1/saved"
    ip "-$family" route flush proto boot 2>/dev/null
    echo "mode $mode, flush: $?, left $(listed)"
    [ $mode = 0 ] || ip "-$family" route del "${net}2$end"
    ip "-$family" route restore <"$1/saved" 2>"$1/said"
    echo "restore: $?, there $(listed) $(cat "$1/said")"
    for number in 1 2 3; do ip "-$family" route del "$net$number$end" 2>/dev/null; done
  done
done
SHELL
ip -V
uname -sr
seen=$(unshare --net sh "$folder/routes.sh" "$folder" | sed 's/ $//')
echo "$seen"
error="Error: Nexthop specification and nexthop id are mutually exclusive."
expected="mode 1, flush: 2, left ${EXPECTED:-10.0.2.0/24 nhid 4}
restore: 2, there 10.0.1.0/24 $error
mode 1, flush: 2, left 2001:db8:1:2::/64 nhid 6
restore: 2, there 2001:db8:1:1::/64 $error
mode 0, flush: 0, left
restore: 0, there 10.0.1.0/24,10.0.2.0/24 nhid 4,10.0.3.0/24
mode 0, flush: 0, left
restore: 0, there 2001:db8:1:1::/64,2001:db8:1:2::/64 nhid 6,2001:db8:1:3::/64"
[ "$seen" = "$expected" ] || { echo "changed, expected:" >&2; echo "$expected" >&2; exit 1; }
