#!/bin/sh
# Seen in glibc 2.36 of Debian 12 (libc6-dev-s390x-cross 2.36-8cross1): on s390x every socket call of the C library is
# socketcall(2), number 102, although the kernel has had socket(2), bind(2) and so on as calls of their own since
# Linux 4.3. So a seccomp filter that allows those alone ends every program at its first socket, and a filter that
# allows socketcall(2) sees neither the family of a socket nor its protocol: they are in memory. fstatfs(3) is
# fstatfs64(2), number 266, although the machine has 64 bits and a fstatfs(2) as well.
#
# Needs the network, for two Debian packages, which are only unpacked.
set -eu

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get download libc6-dev-s390x-cross=2.36-8cross1 binutils-s390x-linux-gnu=2.40-2 >/dev/null 2>&1
for package in *.deb; do dpkg-deb -x "$package" .; done

# The numbers of the system calls in an object of libc.a: in the instruction, or if above 255 in register 1.
calls() {
  usr/bin/s390x-linux-gnu-ar x usr/s390x-linux-gnu/lib/libc.a "$1"
  usr/bin/s390x-linux-gnu-objdump -d "$1" | sed -nE 's/.*svc[[:space:]]+([1-9][0-9]*).*/\1/p; s/.*lghi[[:space:]]+%r1,([0-9]+).*/\1/p' | sort -un | tr '\n' ' '
}

expect() {
  [ "$2" = "$3" ] || { echo "changed: $1: expected $3, got $2" >&2; exit 1; }
  echo "as seen: $1: $2"
}

for name in socket bind connect getsockname getsockopt setsockopt send sendto sendmsg recvmsg socketpair; do
  expect "$name(3)" "$(calls "$name.o")" "${EXPECTED:-102} "
done
expect "fstatfs(3)" "$(calls fstatfs64.o)" "266 "
