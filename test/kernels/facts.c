/* facts.c: prints for each feature of the kernel that the library uses whether this kernel has it, a line each,
 * `NAME: ANSWER`. docs/kernels.md is written from its output. It uses system calls alone, and not the library. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef SO_NETNS_COOKIE
#define SO_NETNS_COOKIE 71
#endif
#ifndef SIOCGSKNS
#define SIOCGSKNS 0x894C
#endif
/* PIDFD_GET_NET_NAMESPACE, include/uapi/linux/pidfd.h; NS_GET_ID, include/uapi/linux/nsfs.h */
#define GET_NET_NAMESPACE _IO(0xFF, 4)
#define GET_ID _IOR(0xb7, 13, uint64_t)

static const char *name(int error) { return error ? strerrorname_np(error) : "yes"; }
static const char *said(long result) { return name(result < 0 ? errno : 0); }
static int pidfd_open(pid_t pid) { return syscall(SYS_pidfd_open, pid, 0); }

static int ready[2];
static pid_t thread;

static void *sleeper(void *unused) {
  thread = gettid();
  if (write(ready[1], "x", 1) != 1) exit(1);
  pause();
  return unused;
}

static int route(void) { return socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE); }

static void places(void) {
  int s = route(), ns = open("/proc/self/ns/net", O_RDONLY), fd, pidfd;
  uint64_t cookie = 0, id = 0;
  socklen_t length = sizeof cookie;
  printf("SO_NETNS_COOKIE: %s\n", said(getsockopt(s, SOL_SOCKET, SO_NETNS_COOKIE, &cookie, &length)));
  printf("SIOCGSKNS: %s\n", said(fd = ioctl(s, SIOCGSKNS)));
  printf("NS_GET_ID: %s\n", said(ioctl(ns, GET_ID, &id)));
  if (id) printf("NS_GET_ID is the cookie: %s\n", id == cookie ? "yes" : "no");
  printf("pidfd_open: %s\n", said(pidfd = pidfd_open(getpid())));
  printf("PIDFD_GET_NET_NAMESPACE: %s\n", said(ioctl(pidfd, GET_NET_NAMESPACE, 0)));

  pthread_t other;
  char byte;
  if (pipe(ready) || pthread_create(&other, NULL, sleeper, NULL) || read(ready[0], &byte, 1) != 1) exit(1);
  printf("pidfd_open of a thread: %s\n", said(pidfd_open(thread)));

  /* A process that has ended, whose number is still that of a process group. */
  int hold[2];
  if (pipe(hold)) exit(1);
  pid_t leader = fork();
  if (leader == 0) {
    setpgid(0, 0);
    if (fork() == 0) {
      close(hold[1]);
      if (read(hold[0], &byte, 1) < 0) _exit(1);
      _exit(0);
    }
    _exit(0);
  }
  waitpid(leader, NULL, 0);
  printf("pidfd_open of a group whose leader is gone: %s\n", said(pidfd_open(leader)));
  close(hold[1]);

  char line[256], path[64];
  int seen = 0;
  snprintf(path, sizeof path, "/proc/self/fdinfo/%d", ns);
  FILE *info = fopen(path, "r");
  while (info && fgets(line, sizeof line, info)) seen |= !strncmp(line, "ino:", 4);
  printf("ino: in fdinfo: %s\n", seen ? "yes" : "no");
}

static void options(void) {
  int s = route(), on = 1, group;
  printf("NETLINK_EXT_ACK: %s\n", said(setsockopt(s, SOL_NETLINK, NETLINK_EXT_ACK, &on, sizeof on)));
  printf("NETLINK_GET_STRICT_CHK: %s\n", said(setsockopt(s, SOL_NETLINK, NETLINK_GET_STRICT_CHK, &on, sizeof on)));

  int most = 0;
  for (group = 1; group < 100; group++)
    if (setsockopt(s, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group, sizeof group) == 0) most = group;
  printf("groups of NETLINK_ROUTE: %d\n", most);
  uint32_t groups[8];
  socklen_t length = sizeof groups;
  if (getsockopt(s, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, groups, &length) == 0)
    printf("NETLINK_LIST_MEMBERSHIPS reports: %u bytes for these\n", length);

  static struct sock_filter code[4096];
  unsigned low = 0, high = 4096;
  while (low < high) {
    unsigned middle = (low + high + 1) / 2, n;
    for (n = 0; n < middle; n++) code[n] = (struct sock_filter){BPF_LD | BPF_IMM, 0, 0, 0};
    code[middle - 1] = (struct sock_filter){BPF_RET | BPF_K, 0, 0, 0x40000};
    struct sock_fprog program = {middle, code};
    int t = route(), done = setsockopt(t, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program);
    close(t);
    if (done == 0) low = middle; else high = middle - 1;
  }
  printf("instructions of a filter, of 4096: %u\n", low);
}

/* Whether NLMSG_DONE of a dump shares the last datagram with data. */
static char buffer[1 << 20];

static int shares(int type) {
  struct { struct nlmsghdr head; struct ifinfomsg body; } ask = {
    {sizeof ask, type, NLM_F_REQUEST | NLM_F_DUMP, 1, 0}, {0}};
  int s = route(), shared = 0, done = 0;
  if (send(s, &ask, sizeof ask, 0) < 0) exit(1);
  while (!done) {
    long size = recv(s, buffer, sizeof buffer, 0);
    int data = 0;
    struct nlmsghdr *m;
    if (size < 0) exit(1);
    for (m = (void *)buffer; NLMSG_OK(m, size); m = NLMSG_NEXT(m, size)) {
      if (m->nlmsg_type == NLMSG_DONE) done = 1, shared = data;
      else data = 1;
    }
  }
  close(s);
  return shared;
}

static void dumps(void) {
  printf("NLMSG_DONE shares a datagram with data:%s%s%s (links, addresses, routes)\n",
         shares(RTM_GETLINK) ? " yes" : " no", shares(RTM_GETADDR) ? " yes" : " no",
         shares(RTM_GETROUTE) ? " yes" : " no");

  /* A strict dump that the kernel refuses with an extended ack, in NLMSG_ERROR or in NLMSG_DONE. */
  struct { struct nlmsghdr head; struct ifinfomsg body; } ask = {
    {sizeof ask, RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, 2, 0}, {0}};
  int on = 1, s = route();
  setsockopt(s, SOL_NETLINK, NETLINK_EXT_ACK, &on, sizeof on);
  setsockopt(s, SOL_NETLINK, NETLINK_GET_STRICT_CHK, &on, sizeof on);
  ask.body.ifi_change = 7;
  if (send(s, &ask, sizeof ask, 0) < 0) exit(1);
  long size = recv(s, buffer, sizeof buffer, 0);
  struct nlmsghdr *m = (void *)buffer;
  printf("a dump refused by strict checks: %s with%s an extended ack\n",
         m->nlmsg_type == NLMSG_DONE ? "NLMSG_DONE" : m->nlmsg_type == NLMSG_ERROR ? "NLMSG_ERROR" : "data",
         size > 0 && m->nlmsg_flags & NLM_F_ACK_TLVS ? "" : "out");
}

int main(void) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  places();
  options();
  dumps();
  return 0;
}
