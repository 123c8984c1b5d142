#!/bin/sh
# init.sh: process 1 of the machine that run.sh boots. Mounts the file systems of a Debian, runs guest.sh, and turns
# the machine off.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
mount -o remount,rw /
mount -t sysfs sys /sys
mount -t proc proc /proc 2>/dev/null
mkdir -p /dev/pts /dev/shm /guest
mount -t devtmpfs dev /dev 2>/dev/null
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=1777 tmpfs /tmp
ln -sf /proc/self/fd /dev/fd
hostname machine
ip link set lo up
# Keeps the kernel's messages out of the output of the tests.
dmesg -n 1
for disk in /dev/vda /dev/vdb; do
  case $(blkid -o value -s LABEL "$disk") in work) mount "$disk" /guest ;; esac
done
# The output of the tests goes to the console.
sh /guest/guest.sh 2>&1
echo "@@ end $?"
sync
mount -o remount,ro / 2>/dev/null
exec busybox poweroff -f
