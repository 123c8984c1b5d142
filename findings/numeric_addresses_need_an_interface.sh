#!/bin/sh
# getaddrinfo(3) with AI_ADDRCONFIG refuses addresses that need no lookup, depending on what the network namespace has.
# glibc asks rtnetlink for its addresses, and counts neither 127.0.0.1 nor ::1; musl tries to connect a UDP socket to
# the loopback address of each family. So in a sandbox (unshare --net) with `ip link set lo up`
# - glibc does not know "127.0.0.1" for AF_INET, nor "::1" for AF_INET6. With AF_UNSPEC both work, and with musl all do;
# - 127.0.0.2 on lo, or an address of a link that is down, makes 127.0.0.1 known to glibc, and "::1" unknown, with
#   AF_UNSPEC as well: IPv4 is configured then, and IPv6 is not. So it is in a container with an IPv4 address alone;
# - while lo is down, musl knows no address at all, and glibc knows both with AF_UNSPEC.
# A test that passes on the host fails in a namespace that has everything it needs. getaddrinfo(3) says that the
# loopback address does not count, of the addresses of names. Without hints the flag is set in glibc.
# Seen with glibc 2.36 and musl 1.2.3 of Debian 12 on Linux 6.18. Needs root (for a network namespace) and ip(8).
set -eu
packages='gcc libc6-dev musl-tools'
for package in $packages; do dpkg -s "$package" >/dev/null 2>&1 || missing="${missing:-} $package"; done
if [ -n "${missing:-}" ]; then
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/lookup.c" <<'C'
#include <netdb.h>
#include <stdio.h>
#include <sys/socket.h>

int main(void) {
  int families[] = {AF_INET, AF_INET6, AF_UNSPEC, AF_UNSPEC};
  const char *addresses[] = {"127.0.0.1", "::1", "127.0.0.1", "::1"}, *names[] = {"AF_INET", "AF_INET6", "AF_UNSPEC", "AF_UNSPEC"};

  for (int i = 0; i < 4; i++) {
    struct addrinfo *result, hints = {.ai_family = families[i], .ai_socktype = SOCK_STREAM, .ai_flags = AI_ADDRCONFIG};
    printf("%s%s %s: %s", i ? ", " : " ", names[i], addresses[i], getaddrinfo(addresses[i], NULL, &hints, &result) ? "no" : "yes");
  }
  putchar('\n');
  return 0;
}
C
gcc -o "$folder/glibc" "$folder/lookup.c"
musl-gcc -o "$folder/musl" "$folder/lookup.c"
cat >"$folder/lookups.sh" <<'SHELL'
look() { for library in glibc musl; do echo "$1, $library:$("$folder/$library")"; done; }
folder=$1
look "lo down"
ip link set lo up
look "lo up"
ip addr add 127.0.0.2/8 dev lo
look "127.0.0.2 on lo"
ip addr del 127.0.0.2/8 dev lo
ip link add va type veth peer name vb
ip addr add 192.0.2.1/24 dev va
look "192.0.2.1 on a link that is down"
SHELL
dpkg-query -W -f='${Package} ${Version}\n' libc6-dev musl-tools
uname -sr
seen=$(unshare --net sh "$folder/lookups.sh" "$folder")
echo "$seen"
no=${EXPECTED:-no}
expected="lo down, glibc: AF_INET 127.0.0.1: no, AF_INET6 ::1: no, AF_UNSPEC 127.0.0.1: yes, AF_UNSPEC ::1: yes
lo down, musl: AF_INET 127.0.0.1: no, AF_INET6 ::1: no, AF_UNSPEC 127.0.0.1: no, AF_UNSPEC ::1: no
lo up, glibc: AF_INET 127.0.0.1: $no, AF_INET6 ::1: no, AF_UNSPEC 127.0.0.1: yes, AF_UNSPEC ::1: yes
lo up, musl: AF_INET 127.0.0.1: yes, AF_INET6 ::1: yes, AF_UNSPEC 127.0.0.1: yes, AF_UNSPEC ::1: yes
127.0.0.2 on lo, glibc: AF_INET 127.0.0.1: yes, AF_INET6 ::1: no, AF_UNSPEC 127.0.0.1: yes, AF_UNSPEC ::1: no
127.0.0.2 on lo, musl: AF_INET 127.0.0.1: yes, AF_INET6 ::1: yes, AF_UNSPEC 127.0.0.1: yes, AF_UNSPEC ::1: yes
192.0.2.1 on a link that is down, glibc: AF_INET 127.0.0.1: yes, AF_INET6 ::1: no, AF_UNSPEC 127.0.0.1: yes, AF_UNSPEC ::1: no
192.0.2.1 on a link that is down, musl: AF_INET 127.0.0.1: yes, AF_INET6 ::1: yes, AF_UNSPEC 127.0.0.1: yes, AF_UNSPEC ::1: yes"
[ "$seen" = "$expected" ] || { echo "changed, expected:" >&2; echo "$expected" >&2; exit 1; }
