#!/bin/sh
# The sequence number and the port id that mnl_cb_run() of libmnl is given do not keep events apart from answers, on a
# socket that has joined a group. libmnl compares them only where the message has numbers other than 0:
# - an event of a link has 0 in both. It reaches the callback as an answer, so a request for the link 1 gets another
#   link. The answer itself comes with the next read;
# - an event of an address that another process has set has the numbers of that process. mnl_cb_run() returns -1 with
#   ESRCH, "No such process", which a program takes for the errno of its request.
# libnl returns NLE_SEQ_MISMATCH in both cases. In all of them the answer is still on the socket, and is what the next
# request reads. So requests need a socket of their own, or a loop that looks at the numbers itself.
# Seen with libmnl 1.0.4 and libnl 3.7.0 on Linux 6.18. Needs root (for a network namespace), gcc and ip(8).
set -eu
packages='gcc libc6-dev libmnl-dev libnl-3-dev'
for package in $packages; do dpkg -s "$package" >/dev/null 2>&1 || missing="${missing:-} $package"; done
if [ -n "${missing:-}" ]; then
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
dpkg-query -W -f='${Package} ${Version}\n' libmnl-dev libnl-3-dev
uname -sr

cat >"$folder/ask.c" <<'C'
#include <errno.h>
#include <libmnl/libmnl.h>
#include <linux/rtnetlink.h>
#include <netlink/msg.h>
#include <netlink/netlink.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct ifinfomsg loopback = {.ifi_index = 1};

static int answer(const struct nlmsghdr *header, void *data) {
  printf(" link %d,", ((struct ifinfomsg *)mnl_nlmsg_get_payload(header))->ifi_index);
  return MNL_CB_OK;
}

static int nl_answer(struct nl_msg *message, void *data) {
  answer(nlmsg_hdr(message), data);
  return NL_OK;
}

static void by_libmnl(int group, const char *meanwhile) {
  char buffer[8192];
  struct mnl_socket *socket = mnl_socket_open(NETLINK_ROUTE);
  struct nlmsghdr *header = mnl_nlmsg_put_header(buffer);

  mnl_socket_bind(socket, 0, MNL_SOCKET_AUTOPID);
  mnl_socket_setsockopt(socket, NETLINK_ADD_MEMBERSHIP, &group, sizeof group);
  if (system(meanwhile)) exit(1);
  header->nlmsg_type = RTM_GETLINK;
  header->nlmsg_flags = NLM_F_REQUEST;
  header->nlmsg_seq = 77;
  memcpy(mnl_nlmsg_put_extra_header(header, sizeof loopback), &loopback, sizeof loopback);
  mnl_socket_sendto(socket, header, header->nlmsg_len);
  printf("libmnl:");
  for (int read = 0; read < 2; read++) {
    int size = mnl_socket_recvfrom(socket, buffer, sizeof buffer);
    int result = mnl_cb_run(buffer, size, 77, mnl_socket_get_portid(socket), answer, NULL);
    printf(" %s;", result < 0 ? strerror(errno) : "success");
  }
  puts("");
  fflush(stdout);
}

static void by_libnl(int group, const char *meanwhile) {
  struct nl_sock *socket = nl_socket_alloc();
  struct nl_msg *message = nlmsg_alloc_simple(RTM_GETLINK, 0);

  nl_connect(socket, NETLINK_ROUTE);
  nl_socket_add_membership(socket, group);
  nl_socket_modify_cb(socket, NL_CB_VALID, NL_CB_CUSTOM, nl_answer, NULL);
  if (system(meanwhile)) exit(1);
  nlmsg_append(message, &loopback, sizeof loopback, NLMSG_ALIGNTO);
  nl_send_auto(socket, message);
  printf("libnl:");
  for (int read = 0; read < 2; read++) printf(" %s;", nl_geterror(nl_recvmsgs_default(socket)));
  puts("");
  fflush(stdout);
}

int main(void) {
  by_libmnl(RTNLGRP_LINK, "ip link add br5 index 5 type bridge");
  by_libmnl(RTNLGRP_IPV4_IFADDR, "ip addr add 192.0.2.1/24 dev br5");
  by_libnl(RTNLGRP_LINK, "ip link add br6 index 6 type bridge");
  by_libnl(RTNLGRP_IPV4_IFADDR, "ip addr add 192.0.2.2/24 dev br5");
  return 0;
}
C
gcc -o "$folder/ask" "$folder/ask.c" -I/usr/include/libnl3 -lmnl -lnl-3
seen=$(unshare --net "$folder/ask")
echo "$seen"
expected="libmnl: link ${EXPECTED:-5}, success; link 1, success;
libmnl: No such process; link 1, success;
libnl: Message sequence number mismatch; link 1, Success;
libnl: Message sequence number mismatch; link 1, Success;"
[ "$seen" = "$expected" ] || { echo "changed, expected:" >&2; echo "$expected" >&2; exit 1; }
