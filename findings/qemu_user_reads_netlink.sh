#!/bin/sh
# qemu-user passes netlink and namespaces on only in part, also if the emulated machine is the host's own:
# - socket(2) knows NETLINK_ROUTE, AUDIT and KOBJECT_UEVENT. Every other protocol is EPROTONOSUPPORT, as on a kernel
#   that was built without it: no generic netlink, netfilter, sock_diag, xfrm.
# - each message of NETLINK_ROUTE is translated, and only links, addresses and routes can be. A request of another type
#   is refused at send(2), with EOPNOTSUPP: neighbours, rules, qdiscs, numbers of namespaces.
# - an event of another type is lost: recvmsg(2) is EINVAL, and the datagram is gone from the queue. Joining its group
#   succeeds. So a monitor that ends at an error ends with the first neighbour, and one that goes on does not know.
# - clone(2) with CLONE_NEWNET, CLONE_NEWUSER or another namespace is EINVAL, and clone3(2) ENOSYS; unshare(2) and
#   setns(2) with the same flags work.
# So a test of a foreign image under qemu-user covers little of a client of netlink.
# Seen with qemu-user-static 7.2 of Debian 12 on Linux 6.18, x86_64 on x86_64. Needs root (for a network namespace), gcc
# and ip(8).
set -eu
if ! command -v qemu-x86_64-static >/dev/null; then
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends qemu-user-static >/dev/null
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/look.c" <<'C'
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static char stack[65536], data[65536];

static int child(void *none) { return none != 0; }

static void says(const char *what, long result) {
  printf("%s: %s\n", what, result < 0 ? strerrorname_np(errno) : "done");
  fflush(stdout);
}

static int bound(int group) {
  struct sockaddr_nl address = {.nl_family = AF_NETLINK};
  int sock = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
  if (bind(sock, (struct sockaddr *)&address, sizeof address) < 0) exit(1);
  if (group && setsockopt(sock, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group, sizeof group) < 0) exit(1);
  return sock;
}

static void asks(const char *what, int type) {
  struct { struct nlmsghdr header; char body[12]; } request = {{sizeof request, type, NLM_F_REQUEST | NLM_F_DUMP, 1, 0}, ""};
  says(what, send(bound(0), &request, sizeof request, 0));
}

int main(void) {
  for (int protocol = 0; protocol <= NETLINK_GENERIC; protocol++) {
    if (protocol == NETLINK_ROUTE || protocol == NETLINK_GENERIC || protocol == NETLINK_NETFILTER || protocol == NETLINK_SOCK_DIAG) {
      char name[20];
      snprintf(name, sizeof name, "protocol %d", protocol);
      says(name, socket(AF_NETLINK, SOCK_RAW, protocol));
    }
  }
  asks("dump of links", RTM_GETLINK);
  asks("dump of neighbours", RTM_GETNEIGH);
  asks("dump of rules", RTM_GETRULE);
  asks("dump of namespaces", RTM_GETNSID);
  int sock = bound(RTNLGRP_IPV4_RULE);
  if (system("ip rule add pref 5 table 7") != 0) return 1;
  says("event of a rule", recv(sock, data, sizeof data, MSG_DONTWAIT));
  says("again", recv(sock, data, sizeof data, MSG_DONTWAIT));
  says("clone(2), CLONE_NEWNET", clone(child, stack + sizeof stack, CLONE_NEWNET | SIGCHLD, 0));
  says("clone3(2)", syscall(SYS_clone3, 0, 0));
  says("unshare(2), CLONE_NEWNET", unshare(CLONE_NEWNET));
  says("setns(2), CLONE_NEWNET", setns(open("/proc/self/ns/net", O_RDONLY), CLONE_NEWNET));
  while (wait(0) > 0);
  return 0;
}
C
gcc -static -o "$folder/look" "$folder/look.c"
uname -sr
qemu-x86_64-static --version | head -1
timeout 20 unshare --net "$folder/look" >"$folder/native"
timeout 20 unshare --net qemu-x86_64-static "$folder/look" >"$folder/emulated"
paste -d '|' "$folder/native" "$folder/emulated" | sed 's/|.*: / | /' >"$folder/seen"
cat >"$folder/expected" <<EXPECTED
protocol 0: done | done
protocol 4: done | EPROTONOSUPPORT
protocol 12: done | EPROTONOSUPPORT
protocol 16: done | EPROTONOSUPPORT
dump of links: done | done
dump of neighbours: done | EOPNOTSUPP
dump of rules: done | EOPNOTSUPP
dump of namespaces: done | EOPNOTSUPP
event of a rule: done | ${EXPECTED:-EINVAL}
again: EAGAIN | EAGAIN
clone(2), CLONE_NEWNET: done | EINVAL
clone3(2): EINVAL | ENOSYS
unshare(2), CLONE_NEWNET: done | done
setns(2), CLONE_NEWNET: done | done
EXPECTED
cat "$folder/seen"
diff "$folder/expected" "$folder/seen"
