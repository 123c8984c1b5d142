#!/bin/sh
# A cache of routes in libnl differs from the table of the kernel, although no message is lost. libnl takes two routes
# for the same if family, destination, tos, table and priority are equal, whatever their next hops are. So with routes
# that were appended (ip route append):
# - a dump (rtnl_route_alloc_cache) keeps the first one of several IPv4 routes, and drops the others without an error;
# - a cache that its manager keeps up to date (nl_cache_mngr_add) keeps the last one. The deletion of one of them leaves
#   none in the cache;
# - IPv6 events add next hops to the route in such a cache. The deletion of one next hop removes none, and a route that
#   was replaced has the old next hop as well as the new one.
# Seen with libnl 3.7.0 and iproute2 6.1.0 on Linux 6.18. Needs root (for a network namespace), gcc and ip(8).
set -eu
packages='gcc libc6-dev libnl-3-dev libnl-route-3-dev'
for package in $packages; do dpkg -s "$package" >/dev/null 2>&1 || missing="${missing:-} $package"; done
if [ -n "${missing:-}" ]; then
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
dpkg-query -W -f='${Package} ${Version}\n' libnl-route-3-dev
uname -sr
cat >"$folder/cache.c" <<'C'
#include <netlink/cache.h>
#include <netlink/netlink.h>
#include <netlink/route/route.h>
#include <stdio.h>
#include <stdlib.h>

static void next_hops(struct nl_object *object, void *text) {
  struct rtnl_route *route = (struct rtnl_route *)object;
  char address[64];
  if (rtnl_route_get_protocol(route) != 4) return; /* RTPROT_STATIC */
  for (int i = 0; i < rtnl_route_get_nnexthops(route); i++) {
    struct nl_addr *gateway = rtnl_route_nh_get_gateway(rtnl_route_nexthop_n(route, i));
    printf(" %s", nl_addr2str(gateway, address, sizeof address));
  }
}

int main(int count, char **commands) {
  struct nl_cache_mngr *manager;
  struct nl_cache *followed, *dumped;
  struct nl_sock *socket = nl_socket_alloc();
  if (nl_connect(socket, NETLINK_ROUTE) || nl_cache_mngr_alloc(NULL, NETLINK_ROUTE, NL_AUTO_PROVIDE, &manager) ||
      nl_cache_mngr_add(manager, "route/route", NULL, NULL, &followed))
    return 1;
  for (int i = 1; i < count; i++) {
    if (system(commands[i])) return 1;
    /* The events are in the queue when the command ends. */
    while (nl_cache_mngr_poll(manager, 0) > 0) continue;
    if (rtnl_route_alloc_cache(socket, AF_UNSPEC, 0, &dumped)) return 1;
    printf("%s: followed", commands[i]);
    nl_cache_foreach(followed, next_hops, NULL);
    printf("; dumped");
    nl_cache_foreach(dumped, next_hops, NULL);
    printf("; kernel ");
    fflush(stdout);
    if (system("for n in -4 -6; do ip -o $n route show proto static; done | grep -o 'via [^ ]*' | cut -c5- | xargs")) return 1;
    nl_cache_free(dumped);
  }
  return 0;
}
C
gcc -o "$folder/cache" "$folder/cache.c" -I/usr/include/libnl3 -lnl-3 -lnl-route-3
cat >"$folder/routes.sh" <<'SHELL'
set -eu
ip link add va type veth peer name vb
ip link set va up
ip link set vb up
ip addr add 192.0.2.1/24 dev va
ip addr add 2001:db8::1/64 dev va nodad
four='203.0.113.0/24 proto static via 192.0.2' six='2001:db8:1::/64 proto static via 2001:db8:'
"$1/cache" "ip route add $four.2" "ip route append $four.3" "ip route del $four.3" "ip route del $four.2" \
  "ip route add $six:2" "ip route append $six:3" "ip route del $six:3" "ip route replace $six:4" | sed 's/proto static //; s/ $//'
SHELL
seen=$(unshare --net sh "$folder/routes.sh" "$folder")
echo "$seen"
expected="ip route add 203.0.113.0/24 via 192.0.2.2: followed 192.0.2.2; dumped 192.0.2.2; kernel 192.0.2.2
ip route append 203.0.113.0/24 via 192.0.2.3: followed 192.0.2.3; dumped 192.0.2.2; kernel 192.0.2.2 192.0.2.3
ip route del 203.0.113.0/24 via 192.0.2.3: followed${EXPECTED:-}; dumped 192.0.2.2; kernel 192.0.2.2
ip route del 203.0.113.0/24 via 192.0.2.2: followed; dumped; kernel
ip route add 2001:db8:1::/64 via 2001:db8::2: followed 2001:db8::2; dumped 2001:db8::2; kernel 2001:db8::2
ip route append 2001:db8:1::/64 via 2001:db8::3: followed 2001:db8::3 2001:db8::2; dumped 2001:db8::2 2001:db8::3; kernel 2001:db8::2 2001:db8::3
ip route del 2001:db8:1::/64 via 2001:db8::3: followed 2001:db8::3 2001:db8::2; dumped 2001:db8::2; kernel 2001:db8::2
ip route replace 2001:db8:1::/64 via 2001:db8::4: followed 2001:db8::3 2001:db8::2 2001:db8::4; dumped 2001:db8::4; kernel 2001:db8::4"
[ "$seen" = "$expected" ] || { echo "changed, expected:" >&2; echo "$expected" >&2; exit 1; }
