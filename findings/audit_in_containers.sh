#!/bin/sh
# NETLINK_AUDIT of the kernel has no container of its own, and what a program in one gets depends on the container:
#   podman (runc), its default profile   socket(2) is EINVAL, as for a socket type that does not exist
#   systemd-nspawn                       socket(2) is EAFNOSUPPORT, although AF_NETLINK is supported
#   another user namespace (bubblewrap, rootless engines)
#                                        socket(2) works; the request's error is ECONNREFUSED, which send(2) gives, too,
#                                        if nobody listens on the protocol
#   another pid namespace                the request's error is EPERM, with all capabilities
#   another network namespace            works
# The first two are filters of seccomp(2), which see the protocol, and the kernel gives ECONNREFUSED for the sake of
# programs that take it for a kernel without audit. EPROTONOSUPPORT, which is such a kernel's error, is none of them.
# Seen with podman 4.3.1, runc 1.1.5, systemd-nspawn 252, bubblewrap 0.8.0 of Debian 12 on Linux 6.18. Needs root
# outside of containers.
set -eu
packages='podman runc conmon systemd-container bubblewrap python3'
for package in $packages; do dpkg -s "$package" >/dev/null 2>&1 || missing="${missing:-} $package"; done
if [ -n "${missing:-}" ]; then
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
dpkg-query -W -f='${Package} ${Version}\n' podman runc systemd-container bubblewrap
uname -sr

mkdir "$folder/root"
for name in proc sys dev tmp usr etc run var root; do mkdir "$folder/root/$name"; done
for name in bin sbin lib lib64; do ln -s "usr/$name" "$folder/root/$name"; done
cat >"$folder/root/etc/ask.py" <<'PYTHON'
import errno, socket, struct

AUDIT_GET = 1000
try:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 9)
except OSError as error:
    print("socket(2):", errno.errorcode[error.errno])
else:
    sock.send(struct.pack("=IHHII", 16, AUDIT_GET, 5, 1, 0))
    number = -struct.unpack_from("=i", sock.recv(4096), 16)[0]
    print("request:", errno.errorcode[number] if number else "done")
PYTHON
ask="/usr/bin/python3 $folder/root/etc/ask.py"
expect() { # TITLE SEEN EXPECTED
  echo "$1: $2"
  [ "$2" = "$3" ] || { echo "changed, expected: $3" >&2; exit 1; }
}
expect "host" "$($ask)" "request: done"
expect "network namespace" "$(unshare --net $ask)" "request: done"
expect "pid namespace" "$(unshare --pid --fork $ask)" "request: EPERM"
expect "user namespace" "$(unshare --user --map-root-user $ask)" "request: ${EXPECTED:-ECONNREFUSED}"
expect "bubblewrap" "$(bwrap --unshare-user --ro-bind / / $ask)" "request: ECONNREFUSED"
cat >"$folder/engines.sh" <<'SHELL'
# What the engines write below /run and /var goes with this mount namespace.
mount -t tmpfs none /run
mkdir /run/lock
case $2 in
  podman) podman --root "$1/store" --runroot /run/podman --runtime runc --cgroup-manager cgroupfs --storage-driver vfs run \
    --rm --network none --ulimit nofile=256:256 --ulimit nproc=256:256 -v /usr:/usr:ro --rootfs "$1/root" /usr/bin/python3 /etc/ask.py ;;
  nspawn) systemd-nspawn --quiet --register=no --keep-unit -D "$1/root" --bind-ro=/usr --as-pid2 /usr/bin/python3 /etc/ask.py ;;
esac
SHELL
engine() { timeout 30 unshare --mount sh "$folder/engines.sh" "$folder" "$1" 2>"$folder/errors" || cat "$folder/errors" >&2; }
expect "podman" "$(engine podman)" "socket(2): EINVAL"
expect "systemd-nspawn" "$(engine nspawn | tr -d '\r')" "socket(2): EAFNOSUPPORT"
