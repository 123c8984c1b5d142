#!/bin/sh
# run.sh [FILE...]: runs the Rust tests and the ExUnit suite, or these files of it, with a helper that is built
# against musl, the C library of Alpine. musl makes other system calls than glibc. `make musl` calls it. Root, for
# namespaces.
#
# The helper is static. Tests that need a dynamic one are left out, and so are those that build it
# for other machines.
set -eu

cd "$(dirname "$0")/../.."
triple=$(uname -m)-unknown-linux-musl
[ -d "$(rustc --print target-libdir --target "$triple")" ] || rustup target add "$triple"
built=$PWD/target/musl/$triple/release

cross() { cargo "$@" --release --locked --quiet --target "$triple" --target-dir target/musl; }
echo "musl: Rust tests"
cross test --bins
cross build --bins --example inject --example attacker --example decoder
cargo build --release --locked --quiet --examples
# inject knows the calls of the C library that it is built with, so that it has to be musl's, too. test_helper.exs
# builds no programs when NETLINK_PORT_TEST_WITHOUT is set.
for example in inject attacker decoder; do
  rm -f "target/release/examples/$example"
  cp "$built/examples/$example" target/release/examples/
done
trap 'rm -f target/release/examples/inject target/release/examples/attacker target/release/examples/decoder' EXIT
echo "musl: the ExUnit suite"
# Each build of the suite is for musl, also those that tests make: they run `mix run`.
export CARGO_BUILD_TARGET="$triple" CARGO_TARGET_DIR="$PWD/target/musl"
NETLINK_PORT_TEST_WITHOUT="dynamic cargo" mix test "$@"
