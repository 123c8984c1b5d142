#!/bin/sh
# netdevsim.sh RELEASE TREE: builds the module netdevsim, a network device with devlink(8) in software, for the kernel of
# Debian 12 and puts it into TREE/usr/lib/modules/RELEASE. No kernel of Debian has it, but the sources of each do. It is
# built in the chroot of Debian 12, whose compiler is that of the kernel. kernel.sh calls it.
set -eu

release=${1:?usage: netdevsim.sh RELEASE TREE} tree=$2
here=$(cd "$(dirname "$0")" && pwd)
suite=bookworm
dir=${KERNELS_DIR:?}
apt=$dir/apt/$suite
. "$here/apt.sh"
series=$(echo "$release" | cut -d. -f1,2)
chroot=$dir/$suite
parts=$dir/netdevsim.parts
trap 'rm -rf "$parts" "$chroot/usr/src/linux-"* "$chroot/usr/lib/linux-kbuild-$series" "$chroot/root/netdevsim"' EXIT

unpack "$parts" "linux-headers-$release" "linux-headers-${release%-*}-common" "linux-kbuild-$series" "linux-source-$series"
# The makefiles of the headers name these folders.
cp -a "$parts/usr/src/." "$chroot/usr/src/"
cp -a "$parts/usr/lib/linux-kbuild-$series" "$chroot/usr/lib/"
tar -xJf "$parts/usr/src/linux-source-$series.tar.xz" -C "$parts" "linux-source-$series/drivers/net/netdevsim"
cp -a "$parts/linux-source-$series/drivers/net/netdevsim" "$chroot/root/netdevsim"
MATRIX_DIR="$dir" "$here/../matrix/enter.sh" "$suite" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin sh -euc '
  command -v make >/dev/null || {
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends make
  }
  make -s -C "/usr/src/linux-headers-$0" M=/root/netdevsim CONFIG_NETDEVSIM=m modules' "$release"
mkdir -p "$tree/usr/lib/modules/$release/updates"
cp "$chroot/root/netdevsim/netdevsim.ko" "$tree/usr/lib/modules/$release/updates/"
