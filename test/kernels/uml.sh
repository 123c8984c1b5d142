#!/bin/sh
# uml.sh SUITE: prints the folder of the user-mode Linux of a Debian suite (bullseye, bookworm, trixie, sid): a kernel
# that is a program, Debian's package user-mode-linux. `root/` is what it runs in: the program, its modules, and the C
# library of its suite. `version` has the kernel's. It is kept, and downloaded again when the suite has a newer one.
set -eu

suite=${1:?usage: uml.sh SUITE}
dir=${KERNELS_DIR:?}
apt=$dir/apt/uml-$suite
. "$(dirname "$0")/apt.sh"

update
version=$(with_apt apt-cache show --no-all-versions user-mode-linux | sed -n 's/^Version: //p')
[ -n "$version" ] || { echo "uml.sh: $suite has no user-mode-linux" >&2; exit 1; }
kernel=$dir/uml-$version
echo "$kernel" >"$apt/current"

if [ ! -d "$kernel" ]; then
  new=$kernel.new
  rm -rf "$new"
  unpack "$new/root" user-mode-linux libc6
  # Debian's newer packages have all of it in /usr. The links are those of a merged /usr.
  for folder in lib lib64; do [ -e "$new/root/$folder" ] || ln -s "usr/$folder" "$new/root/$folder"; done
  mkdir -p "$new/root/dev" "$new/root/proc" "$new/root/tmp" "$new/root/root" "$new/root/kernels"
  echo "$(ls "$new/root/usr/lib/uml/modules") (user-mode-linux $version)" >"$new/version"
  mv "$new" "$kernel"
fi
echo "$kernel"
