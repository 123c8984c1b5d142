#!/bin/sh
# build.sh ARCH FOLDER: builds the static helper of make dist, the Rust tests and the programs of test/fixtures/ for
# another machine, with Debian's cross compiler and Rust's standard library for it. That is from rustup, or on
# Debian 13 from libstd-rust-dev:ARCH.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
. "$here/machine.sh"
out=$2
upper=$(echo "$triple" | tr 'a-z-' 'A-Z_')
export "CARGO_TARGET_${upper}_LINKER=$gcc-gcc"
cd "$top"
"$here/std.sh" "$triple"
cross() { nice -n 19 cargo "$@" --release --locked --target "$triple" --target-dir target/cross; }
cross build --examples
nice -n 19 "$top/test/dist/build.sh" --executable "$arch"
mkdir -p "$out/examples"
built=target/cross/$triple/release
tests=$(cross test --no-run --bins --message-format json-render-diagnostics | sed -nE 's/.*"executable":"([^"]+netlink_port-[^"]+)".*/\1/p' | tail -1)
cp "$tests" "$out/rust_tests"
cp "dist/netlink_port-$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)-$arch-linux" "$out/netlink_port"
for example in "$built"/examples/*; do
  case $example in *.d | *-[0-9a-f]*) ;; *) cp "$example" "$out/examples/" ;; esac
done
