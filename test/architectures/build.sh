#!/bin/sh
# build.sh ARCH FOLDER: the helper, its Rust tests and the programs of test/fixtures/ for another machine, by Debian's cross
# compiler and Rust's standard library for it: of rustup, or on Debian 13 of libstd-rust-dev:ARCH.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
. "$here/machine.sh"
out=$2
upper=$(echo "$triple" | tr 'a-z-' 'A-Z_')
export "CARGO_TARGET_${upper}_LINKER=$gcc-gcc"
cd "$top"
[ -d "$(rustc --print target-libdir --target "$triple")" ] || rustup target add "$triple"
cross() { nice -n 19 cargo "$@" --release --locked --target "$triple" --target-dir target/cross; }
cross build --bins --examples
mkdir -p "$out/examples"
built=target/cross/$triple/release
tests=$(cross test --no-run --bins --message-format json | sed -nE 's/.*"executable":"([^"]+netlink_port-[^"]+)".*/\1/p' | tail -1)
cp "$tests" "$out/rust_tests"
cp "$built/netlink_port" "$out/"
for example in "$built"/examples/*; do
  case $example in *.d | *-[0-9a-f]*) ;; *) cp "$example" "$out/examples/" ;; esac
done
