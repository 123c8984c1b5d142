#!/bin/sh
# root.sh: prints the path of a disk image (ext4) of Debian 12 with the built working tree, in the folder of copy.sh.
# run.sh boots each kernel with it. It is made again when the tree has changed. Root only.
#
# The chroot is one of test/matrix/, in the folder of the kernels. Rust is this machine's, since Debian 12's is too
# old.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
dir=${KERNELS_DIR:?}
packages=${PACKAGES:?the Debian packages to install; make kernels names them}
export MATRIX_DIR="$dir"
CARGO_HOME=${CARGO_HOME:-$HOME/.cargo}
RUSTUP_HOME=${RUSTUP_HOME:-$HOME/.rustup}
[ -d "$RUSTUP_HOME/toolchains" ] || {
  echo "bookworm's Rust is 1.63, and needs 1.85: install Rust by rustup, https://rustup.rs" >&2
  exit 1
}

image=$dir/root.img
root=$("$top/test/matrix/chroot.sh" bookworm)
. "$top/test/places.sh"
tree=$(cd "$top" && tree)
if [ -e "$image" ] && [ "$(cat "$image.tree" 2>/dev/null)" = "$tree $packages" ]; then
  echo "$image"
  exit
fi
work=$("$top/test/matrix/copy.sh" bookworm)
"$top/test/matrix/vendor.sh" "$root"

SHARE="$RUSTUP_HOME $CARGO_HOME/bin" "$top/test/matrix/enter.sh" bookworm env -i HOME=/root LC_ALL=C.UTF-8 \
  RUSTUP_HOME="$RUSTUP_HOME" PACKAGES="$packages busybox-static kmod" \
  PATH="$CARGO_HOME/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" \
  sh -euc '
    missing=
    for package in $PACKAGES; do
      dpkg-query -W -f="\${Status}" "$package" 2>/dev/null | grep -q "^install ok" || missing="$missing $package"
    done
    if [ -n "$missing" ]; then
      dpkg --configure -a
      apt-get update -qq
      DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $missing
      apt-get clean
    fi
    cd "$0"
    MIX_ENV=test mix compile
    cargo build --release --locked --examples
    gcc -O1 -Wall -Wextra -Werror -o target/kernel-facts test/kernels/facts.c
    # The name of the built file has a hash, which changes with the sources.
    rm -f target/rust-tests
    cp "$(cargo test --release --locked --no-run 2>&1 | sed -n "s/.*Executable.*(\(.*\))/\1/p" | head -1)" target/rust-tests
  ' "$work" >"$dir/root.log" 2>&1 </dev/null || {
  tail -20 "$dir/root.log" >&2
  echo "root.sh: the project was not built; all that was said is in $dir/root.log" >&2
  exit 1
}

# The image has no build tools. It is sparse: its free space takes no room.
stage=$dir/root.stage
rm -rf --one-file-system "$stage" "$image"
cp -a --one-file-system "$root" "$stage"
rm -rf "$stage/crates" "$stage$work/target/release/deps" "$stage$work/target/release/build" "$stage$work/_build/dev" \
  "$stage/var/lib/apt/lists" "$stage/var/cache/apt" "$stage$RUSTUP_HOME" "$stage$CARGO_HOME"
mke2fs -q -t ext4 -d "$stage" -L root "$image.tmp" 6G >/dev/null
rm -rf --one-file-system "$stage"
mv "$image.tmp" "$image"
echo "$tree $packages" >"$image.tree"
echo "$image"
