#!/bin/sh
# c-library-calls.sh: the system calls of a C program depend on the C library and on the machine. A seccomp(2)
# filter, an strace(1) rule or an audit rule that was written for one of them can fail with another.
#
# Seen with glibc 2.36 and musl 1.2.3 of Debian 12, on x86_64:
# - open(3) with O_CLOEXEC is openat(2) in glibc, and open(2) followed by fcntl(2) in musl;
# - fork(3) is clone(2) in glibc, and fork(2) with gettid(2) in the child in musl;
# - epoll_wait(3) is epoll_wait(2) in glibc, and epoll_pwait(2) in musl.
# On 32-bit ARM fstat(3) of glibc is statx(2), and send(3) is send(2), which is sendto(2) on x86_64.
set -eu

packages='gcc musl-tools strace gcc-arm-linux-gnueabihf libc6-dev-armhf-cross qemu-user-static'
for package in $packages; do dpkg -s "$package" >/dev/null 2>&1 || missing="${missing:-} $package"; done
if [ -n "${missing:-}" ]; then
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
dpkg-query -W -f='${Package} ${Version}\n' libc6-dev musl-dev libc6-dev-armhf-cross

cat >calls.c <<'C'
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

int main(void) {
  struct stat status;
  struct epoll_event event;
  int ends[2];
  int file = open("/dev/null", O_RDONLY | O_CLOEXEC);
  fstat(file, &status);
  socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends);
  send(ends[0], "x", 1, 0);
  epoll_wait(epoll_create1(0), &event, 1, 0);
  pid_t child = fork();
  if (child == 0) _exit(0);
  waitpid(child, 0, 0);
  return 0;
}
C
gcc -static -o glibc calls.c
musl-gcc -static -o musl calls.c
arm-linux-gnueabihf-gcc -static -o arm calls.c
# The names of the calls from open(3) on, in parent and child, each once.
names() { sed -n '/dev\/null/,$p' | sed -nE 's/^(\[pid +[0-9]+\] |[0-9]+ )?([a-z_0-9]+)\(.*/\2/p' | sort -u | tr '\n' ' '; }
seen=$(
  echo "glibc, x86_64: $(strace -f ./glibc 2>&1 | names)"
  echo "musl, x86_64: $(strace -f ./musl 2>&1 | names)"
  echo "glibc, ARM: $(qemu-arm-static -strace ./arm 2>&1 | names)"
)
echo "$seen"
expected='glibc, x86_64: clone epoll_create1 epoll_wait exit_group newfstatat openat sendto set_robust_list socketpair wait4 
musl, x86_64: epoll_create1 epoll_pwait exit_group fcntl fork fstat gettid open rt_sigprocmask sendto socketpair wait4 
glibc, ARM: clone epoll_create1 epoll_wait exit_group openat send set_robust_list socketpair statx wait4 '
[ "$seen" = "$expected" ] || { echo "expected:" >&2; echo "$expected" >&2; exit 1; }
