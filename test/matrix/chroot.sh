#!/bin/sh
# chroot.sh SUITE: prints the folder of a Debian chroot of SUITE (bookworm, trixie, sid). It is made on the first
# call and kept in $MATRIX_DIR (.matrix at the top of the repository; several clones may share it). Root only.
#
# A chroot is made under another name and renamed when it is complete, so that an interrupted call leaves nothing
# that looks ready. A lock makes a second call wait for the first. debootstrap runs in its own namespaces, so that
# its mounts and processes end with it, and the removal of an incomplete folder never reaches a mounted /proc or
# /dev.
set -eu

suite=${1:?usage: chroot.sh SUITE}
top=$(cd "$(dirname "$0")/../.." && pwd)
dir=${MATRIX_DIR:-$top/.matrix}

[ "$(id -u)" = 0 ] || { echo "chroot.sh: making a chroot takes root" >&2; exit 1; }
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
root=$dir/$suite
exec 9>"$root.lock"
flock 9

if [ ! -d "$root" ]; then
  command -v debootstrap >/dev/null || {
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends debootstrap
  } >&2
  rm -rf --one-file-system "$root.tmp"
  echo "chroot.sh: making $root, once; debootstrap's output is in $root.log" >&2
  unshare --mount --pid --fork --kill-child --mount-proc \
    debootstrap --variant=minbase "$suite" "$root.tmp" >"$root.log" 2>&1 || {
    tail -20 "$root.log" >&2
    exit 1
  }
  # No service starts in the chroot, no recommended packages are installed, and downloaded packages are not kept.
  printf '#!/bin/sh\nexit 101\n' >"$root.tmp/usr/sbin/policy-rc.d"
  chmod 755 "$root.tmp/usr/sbin/policy-rc.d"
  # Lists are valid for a week. An old mirror, or the clock of a virtual machine, can exceed that.
  printf '%s\n' 'APT::Install-Recommends "false";' 'Acquire::Check-Valid-Until "false";' \
    >"$root.tmp/etc/apt/apt.conf.d/90matrix"
  echo force-unsafe-io >"$root.tmp/etc/dpkg/dpkg.cfg.d/90matrix"
  rm -f "$root.tmp"/var/cache/apt/archives/*.deb
  mv "$root.tmp" "$root"
fi

cp -L /etc/resolv.conf "$root/etc/resolv.conf" 2>/dev/null || true
echo "$root"
