#!/bin/sh
# enter.sh SUITE [COMMAND [ARGUMENT...]]: runs a command (a shell) as root in the chroot of SUITE, made where it is
# missing, in its folder /. SHARE="DIR..." names folders of this machine that are to be there, too, read-only, by the
# same names.
#
# It has mount and process namespaces of its own: /proc, /sys, /dev, /run and /tmp are mounted in these alone, and
# when this script ends, or is killed, every process in there is killed and every mount gone. The network is the
# machine's: `ip netns` works in there, on a /run/netns of its own.
set -eu

suite=${1:?usage: enter.sh SUITE [COMMAND [ARGUMENT...]]}
shift
[ $# -gt 0 ] || set -- /bin/bash
root=$("$(dirname "$0")/chroot.sh" "$suite")

# $0 is the chroot in there. It becomes the root of the mount namespace: who is in a mere chroot may not make user
# namespaces. This shell stays, as process 1: it reaps what loses its parent.
exec unshare --mount --pid --fork --kill-child sh -euc '
  mount --bind "$0" "$0"
  mount -t proc proc "$0/proc"
  mount -t sysfs sysfs "$0/sys"
  mount --rbind /dev "$0/dev"
  mount -t tmpfs -o mode=755 tmpfs "$0/run"
  mount -t tmpfs -o mode=1777 tmpfs "$0/tmp"
  for dir in ${SHARE:-}; do
    mkdir -p "$0$dir"
    mount --bind "$dir" "$0$dir"
    mount -o remount,bind,ro "$0$dir"
  done
  unset SHARE TMPDIR
  cd "$0"
  pivot_root . mnt
  cd /
  umount -l /mnt
  "$@" && status=0 || status=$?
  exit "$status"' "$root" "$@"
