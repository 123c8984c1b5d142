// The least that a request through a port program costs, in its two parts.
//
//     floor echo SIZE       spins on standard input, and answers each frame of <packet,4> by a frame of SIZE bytes
//     floor netlink COUNT   sends RTM_GETLINK of interface 1 and receives the answer, COUNT times in a loop, and
//                           prints the nanoseconds of one and the length of the answer
#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static char buffer[1 << 16];

static int echo(unsigned size) {
  static char answer[1 << 16];
  unsigned char header[] = {size >> 24, size >> 16, size >> 8, size};
  memcpy(answer, header, 4);
  fcntl(0, F_SETFL, O_NONBLOCK);
  for (;;) {
    // A request is far shorter than PIPE_BUF, so that a read(2) brings whole frames. There is one at a time.
    ssize_t count = read(0, buffer, sizeof buffer);
    if (count == 0) return 0;
    if (count < 0 && errno != EAGAIN) return 1;
    if (count > 0 && write(1, answer, size + 4) < 0) return 1;
  }
}

static int netlink(int count) {
  struct {
    struct nlmsghdr header;
    struct ifinfomsg link;
  } request = {{sizeof request, RTM_GETLINK, NLM_F_REQUEST, 1, 0}, {.ifi_index = 1}};
  struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};
  struct timespec start, end;
  ssize_t length = 0;
  int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
  if (connect(fd, (struct sockaddr *)&kernel, sizeof kernel) < 0) return 1;
  clock_gettime(CLOCK_MONOTONIC, &start);
  for (int n = 0; n < count; n++) {
    if (send(fd, &request, sizeof request, 0) < 0) return 1;
    if ((length = recv(fd, buffer, sizeof buffer, 0)) < 0) return 1;
  }
  clock_gettime(CLOCK_MONOTONIC, &end);
  double each = (1e9 * (end.tv_sec - start.tv_sec) + (end.tv_nsec - start.tv_nsec)) / count;
  printf("%.0f %zd\n", each, length);
  return 0;
}

int main(int count, char **argument) {
  if (count == 3 && strcmp(argument[1], "echo") == 0) return echo(atoi(argument[2]));
  if (count == 3 && strcmp(argument[1], "netlink") == 0) return netlink(atoi(argument[2]));
  fprintf(stderr, "floor echo SIZE | floor netlink COUNT\n");
  return 2;
}
