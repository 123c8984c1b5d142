#!/bin/sh
# A dump that the kernel cannot make ends with NLMSG_DONE that holds a negative errno, not with NLMSG_ERROR: the kernel
# has accepted the request by then. Three libraries take NLMSG_DONE for success without a look at its payload. To them a
# dump that failed, or that broke off in the middle, is a list that is complete and empty, or shorter:
# - libmnl: mnl_cb_run() returns 0 (MNL_CB_STOP), and leaves errno alone. A control callback for NLMSG_DONE
#   (mnl_cb_run2) sees the errno;
# - libnl: nl_recvmsgs_default() returns 0;
# - pyroute2: no exception, and an empty list.
# Here it is ENOENT, for the dump of a routing table without a route by a socket with NETLINK_GET_STRICT_CHK. ip(8)
# reports it.
# Seen with libmnl 1.0.4, libnl 3.7.0, pyroute2 0.9.5 and iproute2 6.1.0 on Linux 6.18. Needs root (for a network
# namespace), gcc, python3, ip(8) and the network for packages.
set -eu
packages='gcc libc6-dev libmnl-dev libnl-3-dev'
for package in $packages; do dpkg -s "$package" >/dev/null 2>&1 || missing="${missing:-} $package"; done
if [ -n "${missing:-}" ]; then
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
pip="python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --no-deps"
$pip --target "$folder/python" pyroute2==0.9.5
export PYTHONPATH="$folder/python"
dpkg-query -W -f='${Package} ${Version}\n' libmnl-dev libnl-3-dev
uname -sr

cat >"$folder/dump.c" <<'C'
#include <errno.h>
#include <libmnl/libmnl.h>
#include <linux/rtnetlink.h>
#include <netlink/attr.h>
#include <netlink/msg.h>
#include <netlink/netlink.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

static int routes, one = 1;

static int mnl_route(const struct nlmsghdr *header, void *data) {
  routes++;
  return MNL_CB_OK;
}

static int mnl_done(const struct nlmsghdr *header, void *data) {
  printf(" (NLMSG_DONE: %s)", strerror(-*(int *)mnl_nlmsg_get_payload(header)));
  return MNL_CB_STOP;
}

static int nl_route(struct nl_msg *message, void *data) {
  routes++;
  return NL_OK;
}

static void by_libmnl(int table, mnl_cb_t done) {
  char buffer[8192];
  mnl_cb_t controls[] = {[NLMSG_DONE] = done};
  struct mnl_socket *socket = mnl_socket_open(NETLINK_ROUTE);
  struct nlmsghdr *header = mnl_nlmsg_put_header(buffer);
  int result;

  mnl_socket_bind(socket, 0, MNL_SOCKET_AUTOPID);
  mnl_socket_setsockopt(socket, NETLINK_GET_STRICT_CHK, &one, sizeof one);
  header->nlmsg_type = RTM_GETROUTE;
  header->nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
  ((struct rtmsg *)mnl_nlmsg_put_extra_header(header, sizeof(struct rtmsg)))->rtm_family = AF_INET;
  mnl_attr_put_u32(header, RTA_TABLE, table);
  mnl_socket_sendto(socket, header, header->nlmsg_len);
  printf("libmnl, table %d", table);
  routes = errno = 0;
  do {
    int size = mnl_socket_recvfrom(socket, buffer, sizeof buffer);
    result = mnl_cb_run2(buffer, size, 0, 0, mnl_route, NULL, done ? controls : NULL, done ? NLMSG_DONE + 1 : 0);
  } while (result > MNL_CB_STOP);
  printf(": %d, errno %d, routes %d\n", result, errno, routes);
}

static void by_libnl(int table) {
  struct nl_sock *socket = nl_socket_alloc();
  struct nl_msg *message = nlmsg_alloc_simple(RTM_GETROUTE, NLM_F_DUMP);
  struct rtmsg route = {.rtm_family = AF_INET};

  nl_connect(socket, NETLINK_ROUTE);
  setsockopt(nl_socket_get_fd(socket), SOL_NETLINK, NETLINK_GET_STRICT_CHK, &one, sizeof one);
  nl_socket_modify_cb(socket, NL_CB_VALID, NL_CB_CUSTOM, nl_route, NULL);
  nlmsg_append(message, &route, sizeof route, NLMSG_ALIGNTO);
  nla_put_u32(message, RTA_TABLE, table);
  nl_send_auto(socket, message);
  routes = 0;
  int result = nl_recvmsgs_default(socket);
  printf("libnl, table %d: %s, routes %d\n", table, nl_geterror(result), routes);
}

int main(void) {
  by_libmnl(254, NULL);
  by_libmnl(99, NULL);
  by_libmnl(99, mnl_done);
  by_libnl(254);
  by_libnl(99);
  return 0;
}
C
gcc -o "$folder/dump" "$folder/dump.c" -I/usr/include/libnl3 -lmnl -lnl-3
cat >"$folder/dump.py" <<'PYTHON'
from pyroute2 import IPRoute

route = IPRoute(strict_check=True)
for table in 254, 99:
    print(f"pyroute2, table {table}: routes {len(list(route.route('dump', family=2, table=table)))}")
PYTHON
seen=$(unshare --net sh -c '
  ip link add va type veth peer name vb
  ip link set va up
  ip addr add 192.0.2.1/24 dev va
  "$0/dump"
  python3 "$0/dump.py"
  ip route show table 99 2>&1 | head -1' "$folder")
echo "$seen"
expected="libmnl, table 254: 0, errno 0, routes 1
libmnl, table 99: ${EXPECTED:-0}, errno 0, routes 0
libmnl, table 99 (NLMSG_DONE: No such file or directory): 0, errno 0, routes 0
libnl, table 254: Success, routes 1
libnl, table 99: Success, routes 0
pyroute2, table 254: routes 1
pyroute2, table 99: routes 0
Error: ipv4: FIB table does not exist."
[ "$seen" = "$expected" ] || { echo "changed, expected:" >&2; echo "$expected" >&2; exit 1; }
