#!/bin/sh
# enter.sh SUITE [COMMAND [ARGUMENT...]]: runs a command as root in the chroot of SUITE, in its folder /. The
# command defaults to a shell. The chroot is made if it is missing. SHARE="DIR..." names folders of this machine
# that are mounted there, too, read-only, under the same names.
#
# /proc, /sys, /dev, /run and /tmp are mounted in a new mount namespace, which ends with its last process, so that
# nothing stays mounted. Processes that the command leaves behind are killed when the command or this script ends.
# The network is the machine's: `ip netns` works in there, with its own /run/netns. The process ids are the
# machine's, too, since NETLINK_AUDIT serves the initial pid namespace alone.
set -eu

suite=${1:?usage: enter.sh SUITE [COMMAND [ARGUMENT...]]}
shift
[ $# -gt 0 ] || set -- /bin/bash
root=$("$(dirname "$0")/chroot.sh" "$suite")

# $0 is the chroot in there. It becomes the root of the mount namespace, since a process in a mere chroot may not make
# user namespaces.
exec unshare --mount --fork --kill-child=TERM sh -euc '
  end() {
    mine=$(readlink /proc/self/ns/mnt)
    for process in /proc/[0-9]*; do
      case ${process#/proc/} in $$ | $PPID) continue ;; esac
      [ "$(readlink "$process/ns/mnt")" != "$mine" ] || kill -KILL "${process#/proc/}" || true
    done 2>/dev/null
  }
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
  trap "end; exit 143" TERM INT HUP
  exec 3<&0
  "$@" <&3 3<&- & wait $! && status=0 || status=$?
  end
  exit "$status"' "$root" "$@"
