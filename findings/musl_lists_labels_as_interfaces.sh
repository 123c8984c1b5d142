#!/bin/sh
# if_nameindex(3) of musl lists an IPv4 address that has a label of its own (ip addr add ... label va:1) as one more
# interface, with the index of its device. So an index can occur several times, with names that are no links: RTM_GETLINK
# does not know them, nor /sys/class/net. glibc lists links alone. What is built on the function, such as
# socket.if_nameindex() of Python, differs with the C library in the same way, as between Debian and Alpine. Neither
# library lists alternative names.
# In both, if_nametoindex(3) takes any name with a colon for the device in front of it, whether or not there is such a
# label: the kernel cuts the name at the colon.
# Seen with glibc 2.36 and musl 1.2.3 of Debian 12 on Linux 6.18. Needs root (for a network namespace) and ip(8).
set -eu
packages='gcc libc6-dev musl-tools iproute2'
for package in $packages; do dpkg -s "$package" >/dev/null 2>&1 || missing="${missing:-} $package"; done
if [ -n "${missing:-}" ]; then
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
dpkg-query -W -f='${Package} ${Version}\n' libc6-dev musl-dev
uname -sr

cat >names.c <<'C'
#include <net/if.h>
#include <stdio.h>

int main(void) {
  for (struct if_nameindex *entry = if_nameindex(); entry->if_index != 0; entry++)
    if (entry->if_index > 1) printf("%u=%s ", entry->if_index, entry->if_name);
  printf("index of va:none %u, of other %u\n", if_nametoindex("va:none"), if_nametoindex("other"));
  return 0;
}
C
gcc -o glibc names.c
musl-gcc -o musl names.c
seen=$(unshare --net sh -c '
  ip link add va index 2 type bridge
  ip link property add dev va altname other
  ip addr add 192.0.2.1/24 dev va
  ip addr add 192.0.2.2/24 dev va label va:1
  ip addr add 192.0.2.3/24 dev va label va:two
  for library in glibc musl; do echo "$library: $(./$library)"; done')
echo "$seen"
expected="glibc: 2=va index of va:none 2, of other 2
musl: ${EXPECTED:-2=va 2=va:1 2=va:two} index of va:none 2, of other 2"
[ "$seen" = "$expected" ] || { echo "changed, expected:" >&2; echo "$expected" >&2; exit 1; }
