#!/bin/sh
# root.sh ARCH: prints the folder with a Debian for another machine: root.ext4, vmlinuz and initrd. They are made on
# the first call and kept in $ARCHITECTURES_DIR (.architectures). Root only.
#
# Packages are unpacked and not configured, so that no program of the other machine has to run here. This script does
# what the packages' scripts would have done, as far as the tests need it.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
. "$here/machine.sh"
dir=${ARCHITECTURES_DIR:-$here/../../.architectures}/$arch

if [ ! -e "$dir/ready" ]; then
  rm -rf --one-file-system "$dir"
  mkdir -p "$dir/initrd"
  root=$dir/root
  echo "root.sh: making a Debian $suite for $arch, once; the log is $dir/log" >&2
  nice -n 19 mmdebstrap --mode=root --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr --variant=extract --architectures="$debian" --components=main \
    --aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Check-Valid-Until "false"' \
    --include="base-files base-passwd bash coreutils dash debianutils diffutils findutils grep gzip hostname libc-bin
      login mawk mount passwd sed tar util-linux elixir erlang-nox erlang-proper erlang-eunit iproute2 libcap2-bin
      procps nftables conntrack iputils-ping busybox-static git $kernel" \
    "$suite" "$root" http://deb.debian.org/debian >"$dir/log" 2>&1 || {
    tail -20 "$dir/log" >&2
    exit 1
  }
  cp "$root/usr/share/base-passwd/passwd.master" "$root/etc/passwd"
  cp "$root/usr/share/base-passwd/group.master" "$root/etc/group"
  ln -sf mawk "$root/usr/bin/awk"
  for name in sh; do [ -e "$root/usr/bin/$name" ] || ln -s dash "$root/usr/bin/$name"; done
  printf '127.0.0.1 localhost\n' >"$root/etc/hosts"
  install -m 0755 "$here/init.sh" "$root/sbin/guest-init"

  release=$(ls "$root/usr/lib/modules")
  for image in "$root/boot/vmlinuz-$release" "$root/boot/vmlinux-$release"; do
    [ ! -e "$image" ] || cp "$image" "$dir/vmlinuz"
  done
  depmod -b "$root" "$release"
  # The modules that the root file system needs, in the order in which they are loaded.
  : >"$dir/initrd/modules"
  for module in virtio_mmio virtio_pci virtio_blk ext4 virtio_rng; do
    modprobe -d "$root" -S "$release" --show-depends "$module" 2>/dev/null || true
  done | sed -n 's/^insmod //p' | awk '!seen[$1]++ { print $1 }' | while read -r file; do
    name=$(basename "$file")
    cp "$file" "$dir/initrd/$name"
    case $name in *.xz) xz -d "$dir/initrd/$name"; name=${name%.xz} ;; esac
    echo "$name" >>"$dir/initrd/modules"
  done
  cp "$root/usr/bin/busybox" "$dir/initrd/busybox"
  cat >"$dir/initrd/init" <<'INIT'
#!/busybox sh
/busybox mkdir -p /proc /dev /root
/busybox mount -t devtmpfs dev /dev
/busybox mount -t proc proc /proc
while read -r module; do /busybox insmod "/$module"; done </modules
while [ ! -b /dev/vdb ]; do /busybox usleep 100000; done
# The disks come in any order.
for disk in /dev/vda /dev/vdb; do
  /busybox mount -t ext4 "$disk" /root
  [ ! -x /root/sbin/guest-init ] || exec /busybox switch_root /root /sbin/guest-init
  /busybox umount /root
done
/busybox poweroff -f
INIT
  chmod 755 "$dir/initrd/init"
  (cd "$dir/initrd" && find . | cpio -o -H newc --quiet | gzip -1) >"$dir/initrd.gz"
  rm -rf "$root/boot" "$root/usr/share/doc" "$root/usr/share/locale" "$root/usr/share/man"
  mke2fs -q -t ext4 -L root -d "$root" "$dir/root.ext4" 1500M >/dev/null
  rm -rf --one-file-system "$root"
  touch "$dir/ready"
fi
echo "$dir"
