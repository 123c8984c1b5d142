#!/bin/sh
# kernel.sh SUITE: prints the folder of the kernel of a Debian suite (bullseye-security, bookworm, trixie,
# trixie-backports, sid), with `vmlinuz`, `initrd`, `modules.img` and `version`. apt(8) downloads the kernel from
# the mirror in DEBIAN_MIRROR, without touching this machine's own sources. It is kept, and downloaded again when
# the suite has a newer one.
#
# The initrd has only what it needs to mount the two disks: Debian's kernels have virtio and ext4 as modules.
set -eu

suite=${1:?usage: kernel.sh SUITE}
dir=${KERNELS_DIR:?}
busybox=$dir/bookworm/bin/busybox
apt=$dir/apt/$suite
. "$(dirname "$0")/apt.sh"

depends() { # PACKAGE: what it depends on of the kernel's own packages.
  with_apt apt-cache show --no-all-versions "$1" | sed -n 's/^Depends: //p' | tr ',' '\n' |
    sed -n 's/^ *\(linux-\(image\|binary\|modules\)-[0-9][^ ]*\).*/\1/p'
}

update
image=$(depends linux-image-amd64 | head -1)
[ -n "$image" ] || { echo "kernel.sh: $suite has no linux-image-amd64" >&2; exit 1; }
version=$(with_apt apt-cache show --no-all-versions "$image" | sed -n 's/^Version: //p')
kernel=$dir/kernel-$version
echo "$kernel" >"$apt/current"

if [ ! -d "$kernel" ]; then
  new=$kernel.new
  rm -rf "$new"
  unpack "$new/tree" "$image" $(depends "$image")
  [ -d "$new/tree/usr/lib/modules" ] || { mkdir -p "$new/tree/usr"; mv "$new/tree/lib" "$new/tree/usr/lib"; }
  ln -sfn usr/lib "$new/tree/lib" 2>/dev/null || true
  release=$(ls "$new/tree/usr/lib/modules")
  # Debian's newer packages have it beside the modules.
  for image in "$new"/tree/boot/vmlinuz-* "$new/tree/usr/lib/modules/$release/vmlinuz"; do
    [ ! -e "$image" ] || cp "$image" "$new/vmlinuz"
  done
  if [ "$suite" = bookworm ]; then
    "$(dirname "$0")/netdevsim.sh" "$release" "$new/tree" >"$apt/netdevsim.log" 2>&1 </dev/null || {
      tail -20 "$apt/netdevsim.log" >&2
      echo "kernel.sh: the module netdevsim was not built; all that was said is in $apt/netdevsim.log" >&2
      exit 1
    }
  fi
  /sbin/depmod -b "$new/tree" "$release"

  init=$new/init
  mkdir -p "$init/bin" "$init/dev" "$init/proc" "$init/root" "$init/modules"
  cp "$busybox" "$init/bin/busybox"
  n=100
  for module in virtio_pci virtio_blk ext4; do
    /sbin/modprobe -d "$new/tree" -S "$release" --show-depends "$module" | sed -n 's/^insmod \([^ ]*\).*/\1/p' |
      while read -r file; do
        name=$(basename "$file" | sed 's/\.ko.*//')
        [ ! -e "$init"/modules/*-"$name".ko ] || continue
        n=$((n + $(ls "$init/modules" | wc -l) + 1))
        to=$init/modules/$n-$name.ko
        case $file in
          *.xz) xz -dc "$file" >"$to" ;;
          *.zst) zstd -qdc "$file" >"$to" ;;
          *) cp "$file" "$to" ;;
        esac
      done
    n=$((n + 100))
  done
  cat >"$init/init" <<'END'
#!/bin/busybox sh
PATH=/bin
busybox mount -t devtmpfs dev /dev
busybox mount -t proc proc /proc
for module in /modules/*; do busybox insmod "$module"; done
busybox mount -t ext4 /dev/vda /root
busybox mkdir -p /root/usr/lib/modules
busybox mount -t ext4 -o ro /dev/vdb /root/usr/lib/modules
guest=$(busybox sed -n 's/.*guest=\([^ ]*\).*/\1/p' /proc/cmdline)
busybox umount /proc
exec busybox switch_root /root /bin/sh "$guest"
END
  chmod +x "$init/init"
  (cd "$init" && find . | cpio -o -H newc --quiet | gzip -1) >"$new/initrd"
  mke2fs -q -t ext4 -d "$new/tree/usr/lib/modules" "$new/modules.img" 1500M >/dev/null
  echo "$release ($version)" >"$new/version"
  rm -rf "$new/tree" "$init"
  mv "$new" "$kernel"
fi
echo "$kernel"
